# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Where log lines go, and in what form: Ganeti's.

Much of what is logged was said by a QEMU or is the name of a file. Lines are
therefore escaped here, as a whole: none can be broken, or play with a terminal.
"""

from __future__ import annotations

import logging
import sys
import syslog
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from types import TracebackType
  from typing import Optional, Union

_PRIORITIES = {
  logging.DEBUG: syslog.LOG_DEBUG,
  logging.INFO: syslog.LOG_INFO,
  logging.WARNING: syslog.LOG_WARNING,
  logging.ERROR: syslog.LOG_ERR,
  logging.CRITICAL: syslog.LOG_CRIT,
}


class _Formatter(logging.Formatter):
  """Formats lines that hold what others have said."""

  def __init__(self, form: str) -> None:
    super().__init__(form)
    self._second = 0
    self._time = ""

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

  def formatMessage(self, record: logging.LogRecord) -> str:
    return _escape(super().formatMessage(record))

  def formatException(
    self,
    ei: Union[
      tuple[type[BaseException], BaseException, Optional[TracebackType]],
      tuple[None, None, None],
    ],
  ) -> str:
    text = super().formatException(ei)
    return "\n".join(_escape(line) for line in text.splitlines())


class _LogFile(logging.FileHandler):
  """A log file that is opened anew on request, after it was rotated."""

  def __init__(self, path: str) -> None:
    super().__init__(path, encoding="utf-8", errors="backslashreplace")

  def reopen(self) -> None:
    """Opens the file that has the path now.

    Where that fails the old one stays in use. In either case the log says so.

    """
    try:
      stream = self._open()
    except OSError as err:
      logging.error(
        "cannot reopen the log file %s: %s; going on with the old one",
        self.baseFilename,
        err.strerror,
      )
      return
    logging.info("going on in a new log file")
    old = self.setStream(stream)
    if old is not None:
      old.close()


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
      # What no line shows need not be found out (Python's logging HOWTO,
      # "Optimization"): a third of the time that a line takes.
      logging._srcfile = None
      logging.logThreads = False
      logging.logMultiprocessing = False
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
    self._add(logging.StreamHandler(sys.stderr), self._format)

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
