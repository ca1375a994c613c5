# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What can happen to a guest, and an independent opinion on what it died of.

The daemon goes through the events as they come; here a whole history is gone
through from its end.
"""

from __future__ import annotations

import json

from ganeti.kvmd.core.lifecycle import Rule, Verdict
from hypothesis import strategies as st

POWERDOWN = ("POWERDOWN", {})
RESET = ("RESET", {"guest": True, "reason": "guest-reset"})
STOP = ("STOP", {})
RESUME = ("RESUME", {})
BARE = ("SHUTDOWN", {})
USER = ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
SIGNAL = ("SHUTDOWN", {"guest": False, "reason": "host-signal"})
BARK = ("WATCHDOG", {"action": "shutdown"})
WATCHDOG_POWEROFF = ("WATCHDOG", {"action": "poweroff"})
WATCHDOG_PAUSE = ("WATCHDOG", {"action": "pause"})
HIBERNATE = ("SUSPEND_DISK", {})
PANIC = ("GUEST_PANICKED", {"action": "run"})
#: A Windows that came to DRIVER_IRQL_NOT_LESS_OR_EQUAL
STOP_CODE = (
  "GUEST_PANICKED",
  {
    "action": "pause",
    "info": {
      "type": "hyper-v",
      "arg1": 209.0,
      "arg2": 40.0,
      "arg3": 2.0,
      "arg4": 0.0,
      "arg5": 18446735290000000000.0,
    },
  },
)
CRASHLOADED = ("GUEST_CRASHLOADED", {"action": "run"})
MEMORY_FATAL = (
  "MEMORY_FAILURE",
  {"recipient": "hypervisor", "action": "fatal"},
)
MEMORY_INJECT = ("MEMORY_FAILURE", {"recipient": "guest", "action": "inject"})
IO_ERROR = (
  "BLOCK_IO_ERROR",
  {
    "device": "",
    "node-name": "disk0",
    "operation": "write",
    "action": "stop",
    "nospace": True,
    "reason": "No space left on device",
  },
)
#: Events with the names of such that count, which do not
IGNORED = [
  ("WATCHDOG", {"action": "reset"}),
  ("WATCHDOG", {"action": "inject-nmi"}),
  ("WATCHDOG", {"action": ["shutdown"]}),
  ("WATCHDOG", {}),
  ("MEMORY_FAILURE", {"recipient": "hypervisor", "action": "ignore"}),
  ("MEMORY_FAILURE", {"recipient": "hypervisor"}),
  ("BLOCK_IO_ERROR", {**IO_ERROR[1], "action": "report"}),
  ("BLOCK_IO_ERROR", {"action": None}),
]
UNRELATED = ("RTC_CHANGE", {"offset": 1})

#: The table of doc/design.md: QEMU's reason, and the verdicts without and with
#: an administrator's powerdown pending.
TABLE = [
  ("guest-shutdown", Verdict.USER, Verdict.ADMINISTRATOR),
  ("guest-reset", Verdict.GUEST_REBOOT, Verdict.GUEST_REBOOT),
  ("guest-panic", Verdict.GUEST_PANIC, Verdict.GUEST_PANIC),
  ("host-signal", Verdict.ADMINISTRATOR, Verdict.ADMINISTRATOR),
  ("host-qmp-quit", Verdict.ADMINISTRATOR, Verdict.ADMINISTRATOR),
  ("host-ui", Verdict.ADMINISTRATOR, Verdict.ADMINISTRATOR),
  ("host-qmp-system-reset", Verdict.ADMINISTRATOR, Verdict.ADMINISTRATOR),
  ("host-error", Verdict.OTHER, Verdict.OTHER),
  ("subsystem-reset", Verdict.OTHER, Verdict.OTHER),
  ("snapshot-load", Verdict.OTHER, Verdict.OTHER),
  # Unknown ones.
  ("guest-teleport", Verdict.OTHER, Verdict.OTHER),
  ("GUEST-SHUTDOWN", Verdict.OTHER, Verdict.OTHER),
  ("guest-shutdown ", Verdict.OTHER, Verdict.OTHER),
  ("none", Verdict.OTHER, Verdict.OTHER),
  ("host", Verdict.OTHER, Verdict.OTHER),
  ("", Verdict.OTHER, Verdict.OTHER),
]

_SHUTDOWNS = (
  st.just({})
  | st.sampled_from([True, False, None, 1, "true"]).map(
    lambda guest: {"guest": guest}
  )
  | st.tuples(
    st.booleans(), st.sampled_from([row[0] for row in TABLE] + [None, 7, []])
  ).map(lambda pair: {"guest": pair[0], "reason": pair[1]})
).map(lambda data: ("SHUTDOWN", data))

#: Any histories, but more of what decides than of what does not.
HISTORIES = st.lists(
  st.sampled_from([POWERDOWN, STOP, RESET, RESUME, UNRELATED, USER, BARK])
  | st.sampled_from([POWERDOWN, USER, BARK, WATCHDOG_POWEROFF, MEMORY_FATAL])
  | st.sampled_from(
    [
      *(HIBERNATE, PANIC, STOP_CODE, CRASHLOADED, MEMORY_INJECT, IO_ERROR),
      *(WATCHDOG_PAUSE, *IGNORED),
    ]
  )
  | _SHUTDOWNS,
  max_size=9,
)

#: Events that mean nothing, however much they look as if they did.
CHATTER = [
  UNRELATED,
  ("WAKEUP", {}),
  ("STOPPED", {}),
  ("GUEST_SHUTDOWN", {"guest": True}),
  ("SHUTDOWN_", {"guest": True, "reason": "guest-shutdown"}),
  ("DEVICE_DELETED", {"device": "SHUTDOWN", "path": '/"event": "STOP"'}),
  ("JOB_STATUS_CHANGE", {"id": '{"event": "RESET"}', "status": "running"}),
  ("GUEST_PVSHUTDOWN", {}),
  ("ACPI_DEVICE_OST", {"info": {"event": "SHUTDOWN"}, "action": "poweroff"}),
  ("BLOCK_JOB_ERROR", {"offset": -1, "speed": 0.5, "events": ["POWERDOWN"]}),
]

_FORMS = [{}, {"separators": (",", ":")}, {"indent": 2}, {"sort_keys": True}]


@st.composite
def transcripts(draw):
  """What a QEMU might have written, and the history that it tells."""
  history = draw(HISTORIES)
  text = ""
  for event in history:
    for name, data in [*draw(st.lists(st.sampled_from(CHATTER))), event]:
      message = {
        "timestamp": {"seconds": 1795438800, "microseconds": len(text)},
        "event": name,
      }
      if data or draw(st.booleans()):
        message["data"] = data
      written = json.dumps(message, **draw(st.sampled_from(_FORMS)))
      if draw(st.integers(0, 9)) == 0:
        escaped = f'"\\u{ord(name[0]):04x}{name[1:]}"'
        written = written.replace(f'"{name}"', escaped)
      text += written + draw(st.sampled_from(["\r\n", "\n", "", " "]))
  return text.encode("ascii"), history


def _has_cause(data):
  return "guest" in data or "reason" in data


def _is_of_host(data):
  if "reason" in data:
    return str(data["reason"]).startswith("host")
  return data["guest"] is False


def judge(history, rule: Rule = Rule.CAUSE) -> Verdict:
  """Gives the verdict on a history that ends with the process."""
  ends = []
  for place in reversed(range(len(history))):
    name, data = history[place]
    if name in {"RESET", "RESUME"}:
      break
    if name == "SHUTDOWN" or history[place] in (
      WATCHDOG_POWEROFF,
      MEMORY_FATAL,
    ):
      ends.append((place, data))
  if not ends:
    return Verdict.KILLED
  # The last one decides, but the host may only tidy up.
  later = [
    found
    for found in ends[:-1]
    if rule is Rule.CAUSE and _has_cause(found[1]) and not _is_of_host(found[1])
  ]
  place, data = (later or ends[-1:])[0]
  if history[place][0] != "SHUTDOWN":
    return Verdict.OTHER
  before = history[:place]
  if rule is Rule.SEQUENCE or not _has_cause(data):
    is_free = not _presses(before) and not _is_stopped(before)
    return Verdict.USER if is_free else Verdict.ADMINISTRATOR
  if "reason" in data:
    word = data["reason"]
  elif data["guest"] is False:
    return Verdict.ADMINISTRATOR
  else:
    word = "guest-shutdown" if data["guest"] is True else None
  for known, alone, pending in TABLE:
    if word == known:
      if "administrator" in _presses(before):
        return pending
      return _judge_user(before) if alone is Verdict.USER else alone
  return Verdict.OTHER


def _judge_user(history):
  """Gives the verdict on a guest that turned itself off."""
  if _presses(history):
    return Verdict.OTHER
  names = [name for name, _ in _since_reset(history)]
  if "GUEST_PANICKED" in names or "GUEST_CRASHLOADED" in names:
    return Verdict.GUEST_PANIC
  return Verdict.USER


def _since_reset(history):
  names = [name for name, _ in history]
  resets = names[::-1].index("RESET") if "RESET" in names else len(names)
  return history[len(history) - resets :]


def _presses(history):
  """Tells who pressed the power button, each time."""
  history = [
    each for each in _since_reset(history) if each in (POWERDOWN, BARK)
  ]
  return [
    "watchdog" if place and history[place - 1] == BARK else "administrator"
    for place, each in enumerate(history)
    if each == POWERDOWN
  ]


def _is_stopped(history):
  for name, _ in reversed(history):
    if name in {"STOP", "RESUME"}:
      return name == "STOP"
  return False
