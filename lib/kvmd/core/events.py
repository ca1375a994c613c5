# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The events of QEMU that count: which they are, and when each is past. No I/O.

The schema of all of them is QEMU's qapi/run-state.json, but for
C{BLOCK_IO_ERROR}, which is in qapi/block-core.json. Not all that have the name
of one that counts do count: an error of a disk is of interest where it has
stopped the guest. L{KINDS} has a row for each kind that does.

What decides nothing is told in a few words. Whoever controls a QEMU controls
these: they are bounded and escaped, and what is not as in QEMU's schema is left
out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from collections.abc import Callable, Mapping
  from typing import Any, Optional

#: Longest text of QEMU's that is repeated, in characters.
MAX_TEXT = 80

#: What counts of a panic's C{info}: of C{GuestPanicInformationHyperV}, where
#: for Windows the first is the stop code and the others belong to it, and of
#: C{GuestPanicInformationS390}.
PANIC_INFO = (
  *("type", "arg1", "arg2", "arg3", "arg4", "arg5"),
  *("core", "psw-mask", "psw-addr", "reason"),
)

#: A panic of which no more is known.
PANICKED = "guest panicked"

#: From here on not every integer can be told from the next, once it was made
#: a float by who parsed it.
_MAX_EXACT = 2.0**53


def _panicked(data: Mapping[str, Any]) -> str:
  """Says what a C{GUEST_PANICKED} tells."""
  return PANICKED + _panic_info(data.get("info"))


def _crashloaded(data: Mapping[str, Any]) -> str:
  """Says what a C{GUEST_CRASHLOADED} tells."""
  return "guest panicked and loaded its crash kernel" + _panic_info(
    data.get("info")
  )


def _memory_failure(data: Mapping[str, Any]) -> str:
  """Says what a C{MEMORY_FAILURE} tells."""
  return (
    f"memory failure of {_text(data.get('recipient'))}:"
    f" {_text(data.get('action'))}"
  )


def _io_error(data: Mapping[str, Any]) -> str:
  """Says what a C{BLOCK_IO_ERROR} tells that stopped the guest."""
  # Only the first of these is always there, and may be empty.
  names = (data.get(key) for key in ("device", "node-name", "qom-path"))
  device = next((name for name in names if name and isinstance(name, str)), "")
  return (
    f"stopped by an I/O error: {_text(data.get('operation'))} of"
    f" {_text(device)}: {_text(data.get('reason'))}"
  )


def _panic_info(info: Any) -> str:
  if not isinstance(info, dict):
    return ""
  words = [
    f"{int(value):#x}" if is_code(value) else _text(value)
    for value in (info[key] for key in PANIC_INFO if key in info)
  ]
  return ": " + " ".join(words) if words else ""


def is_code(value: Any) -> bool:
  """Tells whether a value is an unsigned integer, and known to the last bit."""
  if isinstance(value, float):
    return value.is_integer() and 0 <= value < _MAX_EXACT
  return type(value) is int and 0 <= value < 2**64


def _text(value: Any) -> str:
  """Gives a text of QEMU's, without the quotes that Python puts around it."""
  if not isinstance(value, str) or not value:
    return "?"
  return ascii(value[:MAX_TEXT])[1:-1]


class Kind(NamedTuple):
  """What is known of a kind of events.

  @ivar undone_by: the events after which it is as if it had not been
  @ivar data: what of its data counts
  @ivar words: what is to be remarked on it, perhaps nothing; None if it does
    not matter later that it was

  """

  undone_by: tuple[str, ...]
  data: tuple[str, ...] = ()
  words: Optional[Callable[[Mapping[str, Any]], str]] = None


#: The events that count. Of an event of which not all do, or not all mean the
#: same, a word of its data is behind the name. What paused the guest is past
#: when it runs again, and all that befell it when it is reset.
KINDS: Mapping[str, Kind] = {
  "POWERDOWN": Kind(("RESET",)),
  "RESET": Kind(("RESET",)),
  "RESUME": Kind(("RESUME",)),
  "SHUTDOWN": Kind(("RESET", "RESUME"), ("guest", "reason")),
  "STOP": Kind(("RESUME",)),
  "WATCHDOG shutdown": Kind(("RESET",), ("action",)),
  "WATCHDOG poweroff": Kind(("RESET", "RESUME"), ("action",)),
  "WATCHDOG pause": Kind(
    ("RESUME",), ("action",), lambda _: "stopped by its watchdog"
  ),
  "MEMORY_FAILURE fatal": Kind(("RESET", "RESUME"), ("recipient", "action")),
  "MEMORY_FAILURE": Kind(("RESET",), ("recipient", "action"), _memory_failure),
  "GUEST_PANICKED": Kind(("RESET",), ("info",), _panicked),
  "GUEST_CRASHLOADED": Kind(("RESET",), ("info",), _crashloaded),
  "SUSPEND_DISK": Kind(("RESET", "RESUME"), (), lambda _: ""),
  "BLOCK_IO_ERROR": Kind(
    ("RESUME",),
    ("action", "operation", "device", "node-name", "qom-path", "reason"),
    _io_error,
  ),
}

#: Their names, as QEMU has them.
NAMES = frozenset(kind.partition(" ")[0] for kind in KINDS)

#: Those that undo others.
UNDOING = frozenset(name for row in KINDS.values() for name in row.undone_by)


def kind_of(name: str, data: Mapping[str, Any]) -> str:
  """Tells which of L{KINDS} an event is; empty if it means nothing."""
  tell = _TELL.get(name)
  if tell is not None:
    return tell(data)
  return name if name in KINDS else ""


def _kind_of_watchdog(data: Mapping[str, Any]) -> str:
  kind = f"WATCHDOG {_action(data)}"
  return kind if kind in KINDS else ""


def _kind_of_memory_failure(data: Mapping[str, Any]) -> str:
  action = _action(data)
  if action == "fatal" and data.get("recipient") == "hypervisor":
    return "MEMORY_FAILURE fatal"
  return "" if action in ("", "ignore") else "MEMORY_FAILURE"


def _kind_of_io_error(data: Mapping[str, Any]) -> str:
  return "BLOCK_IO_ERROR" if _action(data) == "stop" else ""


def _action(data: Mapping[str, Any]) -> str:
  action = data.get("action")
  return action if isinstance(action, str) else ""


#: The events that do not always mean the same, and how to tell.
_TELL: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
  "BLOCK_IO_ERROR": _kind_of_io_error,
  "MEMORY_FAILURE": _kind_of_memory_failure,
  "WATCHDOG": _kind_of_watchdog,
}
