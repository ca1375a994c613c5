# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Where log lines go, and in what form: Ganeti's.

Much of what is logged was said by a QEMU or is the name of a file. Lines are
therefore escaped here, as a whole: none can be broken, or play with a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import syslog
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from types import TracebackType
  from typing import Any, Optional, Union

  _ExceptionInfo = Union[
    tuple[type[BaseException], BaseException, Optional[TracebackType]],
    tuple[None, None, None],
  ]

_FILE_MODE = 0o600

_PRIORITIES = {
  logging.DEBUG: syslog.LOG_DEBUG,
  logging.INFO: syslog.LOG_INFO,
  logging.WARNING: syslog.LOG_WARNING,
  logging.ERROR: syslog.LOG_ERR,
  logging.CRITICAL: syslog.LOG_CRIT,
}


class _Record(logging.LogRecord):
  """What a line shows, and no more: to find out the rest takes as long again.

  Python's logging HOWTO ("Optimization") says how to do without some of it.
  """

  def __init__(  # noqa: PLR0913, PLR0917, as Python calls it
    self,
    name: str,
    level: int,
    pathname: str,  # noqa: ARG002
    lineno: int,  # noqa: ARG002
    msg: object,
    args: Any,
    exc_info: Optional[_ExceptionInfo],
    func: Optional[str] = None,  # noqa: ARG002
    sinfo: Optional[str] = None,  # noqa: ARG002
  ) -> None:
    self.name = name
    self.levelno = level
    self.levelname = logging.getLevelName(level)
    self.msg = str(msg)
    self.args = args
    self.exc_info = exc_info
    self.created = time.time()
    self.msecs = self.created % 1 * 1000
    self.process = os.getpid()


class _Formatter(logging.Formatter):
  """Formats lines that hold what others have said."""

  def __init__(self, form: str) -> None:
    super().__init__(form)
    self._form = form
    self._second = 0
    self._time = ""

  def format(self, record: logging.LogRecord) -> str:
    record.message = record.getMessage()
    record.asctime = self.formatTime(record)
    line = _escape(self._form % record.__dict__)
    if record.exc_info:
      line += "\n" + self.formatException(record.exc_info)
    return line

  def formatTime(
    self,
    record: logging.LogRecord,
    datefmt: Optional[str] = None,  # noqa: ARG002
  ) -> str:
    # Many lines are of one second; to write it out takes longer than the rest.
    second = int(record.created)
    if second != self._second:
      self._second = second
      self._time = super().formatTime(record, "%Y-%m-%d %H:%M:%S")
    return "%s,%03d" % (self._time, record.msecs)

  def formatException(self, ei: _ExceptionInfo) -> str:
    text = super().formatException(ei)
    return "\n".join(_escape(line) for line in text.splitlines())


class _Lines(logging.Handler):
  """Lines that are written at once, in one step each.

  Python's own handlers take twice the time, on their way through layers of
  files.
  """

  def handle(self, record: logging.LogRecord) -> bool:
    # There are no filters, and no other threads to keep out.
    self.emit(record)
    return True

  def emit(self, record: logging.LogRecord) -> None:
    try:
      self.write(self.format(record) + "\n")
    except Exception:  # noqa: BLE001, as in Python's own handlers
      self.handleError(record)

  def write(self, line: str) -> None:
    """Writes a line."""
    raise NotImplementedError


class _Terminal(_Lines):
  """Standard error, which Python writes to line by line."""

  def write(self, line: str) -> None:
    sys.stderr.write(line)


class _LogFile(_Lines):
  """A log file that is opened anew on request, after it was rotated."""

  def __init__(self, path: str) -> None:
    """Opens it.

    @raise OSError: if that is not possible

    """
    super().__init__()
    self._path = os.path.abspath(path)
    self._descriptor = self._open()

  def write(self, line: str) -> None:
    os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))

  def reopen(self) -> None:
    """Opens the file that has the path now.

    Where that fails the old one stays in use. In either case the log says so.

    """
    try:
      descriptor = self._open()
    except OSError as err:
      logging.error(
        "cannot reopen the log file %s: %s; going on with the old one",
        self._path,
        err.strerror,
      )
      return
    logging.info("going on in a new log file")
    os.close(self._descriptor)
    self._descriptor = descriptor

  def _open(self) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.open(self._path, flags, _FILE_MODE)


class _Syslog(logging.Handler):
  """The system's log, as far as there is one."""

  def __init__(self, program: str) -> None:
    super().__init__(logging.INFO)
    syslog.openlog(program, syslog.LOG_PID, syslog.LOG_DAEMON)

  def emit(self, record: logging.LogRecord) -> None:
    syslog.syslog(
      _PRIORITIES.get(record.levelno, syslog.LOG_INFO), self.format(record)
    )


class Logs:
  """The logs of one run of a program."""

  def __init__(self, program: str, *, debug: bool) -> None:
    """Sets up logging, to nowhere yet.

    @param program: its name, for the lines
    @param debug: whether lines that only developers want are logged, too

    """
    self._program = program
    self._files: list[_LogFile] = []
    place = " %(module)s:%(lineno)s" if debug else ""
    self._format = (
      f"%(asctime)s: {program} pid=%(process)d{place} %(levelname)s %(message)s"
    )
    if not debug:
      logging.setLogRecordFactory(_Record)
      logging._srcfile = None
    # A log that cannot be written, to a full disk say, is no reason to fail.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for handler in root.handlers[:]:
      root.removeHandler(handler)

  def add_file(self, path: str) -> None:
    """Logs to a file.

    @raise OSError: if it cannot be opened

    """
    handler = _LogFile(path)
    self._files.append(handler)
    self._add(handler, self._format)

  def add_terminal(self) -> None:
    """Logs to standard error."""
    self._add(_Terminal(), self._format)

  def add_syslog(self) -> None:
    """Logs to the system's log, which adds time and program by itself."""
    self._add(_Syslog(self._program), "%(levelname)s %(message)s")

  def reopen(self) -> None:
    """Opens the log files anew, if there are any."""
    for handler in self._files:
      handler.reopen()

  @staticmethod
  def _add(handler: logging.Handler, form: str) -> None:
    handler.setFormatter(_Formatter(form))
    logging.getLogger().addHandler(handler)


def _escape(line: str) -> str:
  if line.isprintable():
    return line
  return line.encode("unicode_escape").decode("ascii")
