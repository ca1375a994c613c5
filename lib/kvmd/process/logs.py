# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Where log lines go, and in what form: Ganeti's.

Much of what is logged was said by a QEMU or is the name of a file. Lines are
therefore escaped here, as a whole, and cut where they are too long: none can
be broken, play with a terminal, or fill a disk by itself. Where a disk is full
nevertheless, the log says how many lines are missing as soon as it can.
"""

from __future__ import annotations

import errno
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

#: Of a longer line the log has no more than so many characters.
_MAX_LINE = 4096

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

  def __init__(self) -> None:
    super().__init__()
    # Lines that could not be written since the last that could, and why.
    self._missing = 0
    self._trouble = ""

  def handle(self, record: logging.LogRecord) -> bool:
    # There are no filters, and no other threads to keep out.
    self.emit(record)
    return True

  def emit(self, record: logging.LogRecord) -> None:
    try:
      line = self.format(record) + "\n"
      if self._missing:
        self._tell_of_missing()
      self.write(line)
    except OSError as err:
      # A log that cannot be written, to a full disk say, is no reason to fail.
      self._missing += 1
      self._trouble = os.strerror(err.errno or errno.EIO)
    except Exception:  # noqa: BLE001, as in Python's own handlers
      self.handleError(record)

  def write(self, line: str) -> None:
    """Writes a line.

    @raise OSError: if it could not be written, or not all of it

    """
    raise NotImplementedError

  def _tell_of_missing(self) -> None:
    lines = "1 line" if self._missing == 1 else f"{self._missing} lines"
    record = logging.getLogRecordFactory()(
      "root",
      logging.WARNING,
      __file__,
      0,
      "%s could not be written here: %s",
      (lines, self._trouble),
      None,
    )
    self.write(self.format(record) + "\n")
    self._missing = 0


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
    # Whether the file ends within a line.
    self._is_torn = self._ends_within_line()

  def write(self, line: str) -> None:
    data = line.encode("utf-8", "backslashreplace")
    if self._is_torn:
      data = b"\n" + data
    written = 0
    try:
      # Where a disk becomes full the kernel takes a part, and refuses the rest.
      while written < len(data):
        written += os.write(self._descriptor, data[written:])
    finally:
      if written:
        self._is_torn = data[written - 1 : written] != b"\n"

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
    self._is_torn = self._ends_within_line()

  def _open(self) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.open(self._path, flags, _FILE_MODE)

  def _ends_within_line(self) -> bool:
    """Tells whether whoever wrote to it before came to the end of a line."""
    try:
      # No devices and pipes, which have no size.
      size = os.fstat(self._descriptor).st_size
      if not size:
        return False
      with open(self._path, "rb") as stream:
        stream.seek(size - 1)
        return stream.read(1) != b"\n"
    except OSError:
      return False


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
  """Makes any text one line that is not too long, and that can be shown."""
  if len(line) <= _MAX_LINE and line.isprintable():
    return line
  # What is left out is not worth being escaped, which makes it longer.
  escaped = line[:_MAX_LINE]
  if not escaped.isprintable():
    escaped = escaped.encode("unicode_escape").decode("ascii")
  if len(line) <= _MAX_LINE and len(escaped) <= _MAX_LINE:
    return escaped
  end = f"... (cut, of {len(line)} characters)"
  return escaped[: _MAX_LINE - len(end)] + end
