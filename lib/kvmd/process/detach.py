# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Detaching: a daemon leaves its terminal; its starter learns how it went."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from collections.abc import Callable

#: What a daemon says to its starter when it is ready.
_READY = b"ready"

#: Files that the daemon makes are its own business.
_UMASK = 0o077


#: Standard input, output and error.
_STANDARD = range(3)


class FailedError(Exception):
  """The daemon could not start; the text is what it said."""


def run(serve: Callable[[Callable[[], None]], None]) -> None:
  """Runs a function in a detached process.

  It returns, in the process that called it, when the function says that it is
  ready. The function's own process ends with the function.

  @param serve: the function; it is given another one to call when it is ready
  @raise FailedError: if it raised an exception before that, or just ended

  """
  _fill_standard_descriptors()
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    os.close(reader)
    os.setsid()
    # A session's leader could get a terminal again.
    if os.fork():
      os._exit(0)
    _run_detached(serve, writer)
  os.close(writer)
  os.waitpid(child, 0)
  with open(reader, "rb") as pipe:
    said = pipe.read()
  if said != _READY:
    raise FailedError(
      said.decode("utf-8", "replace") or "it ended without a word"
    )


def _fill_standard_descriptors() -> None:
  """Makes sure that the standard descriptors are taken.

  Else, where the starter has closed them, other files would get them.

  """
  while (descriptor := os.open(os.devnull, os.O_RDWR)) in _STANDARD:
    pass
  os.close(descriptor)


def _run_detached(
  serve: Callable[[Callable[[], None]], None], writer: int
) -> None:
  """Runs the function and ends the process."""
  os.chdir("/")
  os.umask(_UMASK)
  for name in os.listdir("/proc/self/fd"):
    # What the starter left open, a lock say, is not for a daemon to keep.
    if int(name) > _STANDARD[-1] and int(name) != writer:
      with contextlib.suppress(OSError):
        os.close(int(name))
  is_ready = False

  def on_ready() -> None:
    nonlocal is_ready
    is_ready = True
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in _STANDARD:
      os.dup2(null, descriptor)
    os.close(null)
    os.write(writer, _READY)
    os.close(writer)

  status = 1
  try:
    serve(on_ready)
    status = 0
  except BaseException as err:
    if is_ready:
      logging.exception("ended by a fault of its own, please report it")
    else:
      os.write(writer, str(err).encode("utf-8", "backslashreplace"))
  finally:
    logging.shutdown()
    os._exit(status)
