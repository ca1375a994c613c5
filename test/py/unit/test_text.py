# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of strangers' text that is shown."""

from __future__ import annotations

import pytest
from ganeti.kvmd.core import text
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
  ("given_text", "shown"),
  [
    ("", ""),
    ("as it is", "as it is"),
    ("Größe 大 \\n", "Größe 大 \\n"),
    ("a\nb\r\t\0", "a\\nb\\r\\t\\x00"),
    ("\x1b[31m\x7f\x9b", "\\x1b[31m\\x7f\\x9b"),
    ("\u202e\u2028\ufeff", "\\u202e\\u2028\\ufeff"),
    ("\U000e0001", "\\U000e0001"),
    ("\ud800", "\\ud800"),
  ],
)
def test_what_cannot_be_seen_is_escaped(given_text, shown):
  assert text.escape(given_text, 40) == shown


@pytest.mark.parametrize(
  ("given_text", "limit", "shown"),
  [
    ("12345678", 8, "12345678"),
    ("123456789", 8, "12345..."),
    ("1" * 100_000, 8, "11111..."),
    ("1234\n\n", 8, "1234\\n\\n"),
    ("12345\n\n", 8, "12345..."),
    ("1234\n\n\n", 8, "1234..."),
    ("123\n\n\n", 8, "123\\n..."),
    ("1\n2345678", 8, "1\\n23..."),
    ("1234", 3, "..."),
  ],
)
def test_what_is_too_long_is_cut(given_text, limit, shown):
  assert text.escape(given_text, limit) == shown


@given(st.text(), st.integers(3, 50))
def test_any_text(given_text, limit):
  shown = text.escape(given_text, limit)
  assert shown.isprintable()
  assert len(shown) <= limit
  shown.encode()
