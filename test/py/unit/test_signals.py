# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of signals as something to wait for.

They change the whole process, and so have each a process of its own.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from unittest import mock

import forked
from ganeti.kvmd.process.signals import Signals


def _is_readable(signals):
  return bool(select.select([signals], [], [], 0)[0])


def test_signals_are_taken_in_order():
  def check():
    signals = Signals()
    assert not _is_readable(signals)
    assert signals.take() == []
    for number in signal.SIGHUP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT:
      os.kill(os.getpid(), number)
    assert _is_readable(signals)
    assert signals.take() == [1, 15, 1, 2]
    assert not _is_readable(signals)
    assert signals.take() == []

  forked.run(check)


def test_signal_ends_a_wait():
  def check():
    signals = Signals()
    signal.signal(
      signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    assert select.select([signals], [], [], 20)[0]
    assert signals.take() == [signal.SIGTERM]

  forked.run(check)


def test_signal_that_comes_while_they_are_taken_is_neither_lost_nor_left():
  def check():
    signals = Signals()
    receive = signals._reader.recv

    def receive_and_be_interrupted(size):
      try:
        return receive(size)
      finally:
        os.kill(os.getpid(), signal.SIGHUP)

    with mock.patch.object(signals, "_reader") as reader:
      reader.recv = receive_and_be_interrupted
      taken = signals.take()
    for _ in range(2):
      taken += signals.take()
    assert taken == [signal.SIGHUP]
    assert not _is_readable(signals)

  forked.run(check)


def test_flood_of_signals_does_not_block():
  def check():
    told = []
    sys.unraisablehook = told.append
    signals = Signals()
    for _ in range(5000):
      os.kill(os.getpid(), signal.SIGHUP)
    assert set(signals.take()) == {signal.SIGHUP}
    while _is_readable(signals):
      signals.take()
    assert told == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert _is_readable(signals)
    assert signals.take() == [signal.SIGTERM]

  forked.run(check)


def test_closed_one_takes_no_more_signals():
  def check():
    signals = Signals()
    descriptors = set(os.listdir("/proc/self/fd"))
    signals.close()
    assert len(descriptors - set(os.listdir("/proc/self/fd"))) == 2
    # What comes all the same, at the very end, does no harm.
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.set_wakeup_fd(-1) == -1

  forked.run(check)


def test_children_do_not_have_it():
  def check():
    signals = Signals()
    for end in signals._reader, signals._writer:
      assert not os.get_inheritable(end.fileno())
      assert not os.get_blocking(end.fileno())

  forked.run(check)


def test_signals_are_read_at_once():
  def check():
    signals = Signals()
    for _ in range(200):
      os.kill(os.getpid(), signal.SIGHUP)
    assert signals.take() == [signal.SIGHUP] * 200
    assert not _is_readable(signals)

  forked.run(check)
