# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Plays one hostile QEMU, which does its worst under one instance's name.

Usage: attacker.py DIRECTORY INSTANCE ATTACK SECONDS. It writes a line once the
attack has begun, and ends after that many seconds, or with who started it,
whichever comes first. It can do what a QEMU can that its guest has taken over
and that runs as root: anything to its own monitor and its own journal.

"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from typing import Callable, NamedTuple, NoReturn

import payloads
from pretended import (
  GREETING,
  JOURNAL_COMMANDS,
  JOURNAL_EVENTS,
  MONITOR,
  NEGOTIATED,
  UNINTERESTING,
  USER,
  begin_journal,
  end_with_parent,
  event,
  punch_hole,
)

# A journal is given back so far behind its end, in steps; one that is written
# at leisure much later, so that who reads it slower is busy for long before he
# meets a hole.
_WINDOW = 64 * 1024 * 1024
_LONG_WINDOW = 512 * 1024 * 1024
_STEP = 4 * 1024 * 1024
_CLOSED = 10 * 1024 * 1024
_MILLISECOND = 0.001
# So that whoever has to connect first can.
_CLIENT_SECONDS = 0.02
_PATIENCE = 0.5


class Place(NamedTuple):
  """Where the attacker's files are.

  @ivar path: of the files, up to what their names end in

  """

  path: str

  def listen(self) -> socket.socket:
    """Makes a monitor anew."""
    with contextlib.suppress(FileNotFoundError):
      os.unlink(self.path + MONITOR)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(self.path + MONITOR)
    listener.listen(1)
    return listener

  @property
  def commands(self) -> str:
    """The journal's file that tells one life from the next."""
    return self.path + JOURNAL_COMMANDS

  @property
  def events(self) -> str:
    """The journal's file that QEMU writes."""
    return self.path + JOURNAL_EVENTS


class Attack(NamedTuple):
  """Something that a hostile QEMU does.

  @ivar title: what it does, in words
  @ivar play: does it; it never returns

  """

  title: str
  play: Callable[[Place], NoReturn]


_announced: list[bool] = []


def _announce() -> None:
  """Tells whoever waits, once, that the attack has begun."""
  if not _announced:
    _announced.append(True)
    with contextlib.suppress(OSError):
      os.write(1, b"begun\n")


def _negotiate(client: socket.socket) -> None:
  """Lets a client attach.

  @raise OSError: if it goes away before

  """
  client.sendall(GREETING)
  received = b""
  while b"qmp_capabilities" not in received:
    data = client.recv(4096)
    if not data:
      raise ConnectionResetError
    received += data
  client.sendall(NEGOTIATED)


def _serve(
  listener: socket.socket, talk: Callable[[socket.socket], None]
) -> None:
  """Takes a client, and survives what it does.

  @param talk: what is done when it has attached

  """
  with contextlib.suppress(OSError):
    client, _ = listener.accept()
    with client:
      client.settimeout(listener.gettimeout())
      _negotiate(client)
      _announce()
      talk(client)


def _monitor_flood(make: Callable[[], bytes]) -> Callable[[Place], NoReturn]:
  """Says the same as fast as it is taken in."""

  def play(place: Place) -> NoReturn:
    payload = make()

    def talk(client: socket.socket) -> None:
      while True:
        client.sendall(payload)

    listener = place.listen()
    while True:
      _serve(listener, talk)

  return play


def _hang_up(place: Place) -> NoReturn:
  listener = place.listen()
  while True:
    _serve(listener, lambda _: None)
    time.sleep(_MILLISECOND)


def _new_sockets(place: Place) -> NoReturn:
  """Makes a monitor that is left at once, and so on."""
  while True:
    with place.listen():
      _announce()
      time.sleep(_MILLISECOND)


def _short_lives(place: Place) -> NoReturn:
  """Makes a monitor that says that its user turned it off, and so on."""
  line = event("SHUTDOWN", USER)
  while True:
    with place.listen() as listener:
      listener.settimeout(_CLIENT_SECONDS)
      _serve(listener, lambda client: client.sendall(line))
      time.sleep(_MILLISECOND)


def _begin(place: Place) -> int:
  """Begins a journal, as soon as there is room for it."""
  while True:
    try:
      return begin_journal(place.path)
    except OSError:
      time.sleep(_MILLISECOND)


def _write(journal: int, payload: bytes) -> int:
  """Writes to a journal, or waits for room.

  @return: how many bytes were written

  """
  try:
    return os.write(journal, payload)
  except OSError:
    time.sleep(_MILLISECOND)
    return 0


def _journal_flood(
  make: Callable[[], bytes], megabytes_a_second: float = 0
) -> Callable[[Place], NoReturn]:
  """Writes a journal without an end, and gives back what is far behind.

  @param megabytes_a_second: how fast; 0 for as fast as it can. One that is
    little faster than its reader keeps that busy for the longest.

  """

  def play(place: Place) -> NoReturn:
    payload = make()
    journal = _begin(place)
    _announce()
    begun = time.monotonic()
    window = _LONG_WINDOW if megabytes_a_second else _WINDOW
    written = given_back = 0
    while True:
      written += _write(journal, payload)
      if written - given_back > window + _STEP:
        punch_hole(journal, given_back, _STEP)
        given_back += _STEP
      if megabytes_a_second:
        due = begun + written / (megabytes_a_second * 1e6)
        time.sleep(max(0.0, due - time.monotonic()))

  return play


def _journal_fill(place: Place) -> NoReturn:
  payload = payloads.chatter()
  journal = _begin(place)
  _announce()
  while True:
    _write(journal, payload)


def _journal_bytes(place: Place) -> NoReturn:
  """Closes a second descriptor after each byte."""
  payload = payloads.chatter()
  journal = _begin(place)
  _announce()
  while True:
    for number in range(len(payload)):
      _write(journal, payload[number : number + 1])
      _close_after(place, b"")


def _journal_closings(place: Place) -> NoReturn:
  """Opens the journal for each event, and closes it."""
  line = event(*UNINTERESTING[0])
  os.close(_begin(place))
  _announce()
  while True:
    _close_after(place, line)


def _close_after(place: Place, payload: bytes) -> None:
  """Opens the journal, appends to it, and closes it."""
  try:
    descriptor = os.open(place.events, os.O_WRONLY | os.O_APPEND)
  except FileNotFoundError:
    # It has had its verdict.
    descriptor = _begin(place)
  try:
    if payload:
      _write(descriptor, payload)
  finally:
    os.close(descriptor)


def _closed_journals(make: Callable[[], bytes]) -> Callable[[Place], NoReturn]:
  """Leaves a long journal, and the next one as soon as that was judged."""

  def play(place: Place) -> NoReturn:
    payload = make()
    while True:
      journal = _begin(place)
      for _ in range(_CLOSED // len(payload)):
        _write(journal, payload)
      os.close(journal)
      _announce()
      deadline = time.monotonic() + _PATIENCE
      while os.path.exists(place.events) and time.monotonic() < deadline:
        time.sleep(_MILLISECOND)

  return play


def _touch(place: Place) -> NoReturn:
  """Dates what tells one life from the next."""
  line = event(*UNINTERESTING[0])
  journal = _begin(place)
  _announce()
  while True:
    _write(journal, line)
    with contextlib.suppress(FileNotFoundError):
      os.utime(place.commands)
    time.sleep(_MILLISECOND)


#: All attacks, by a word for the command line.
ATTACKS = {
  "monitor-chatter": Attack(
    "monitor: ordinary events", _monitor_flood(payloads.chatter)
  ),
  "monitor-braces": Attack("monitor: {}{}{}", _monitor_flood(payloads.braces)),
  "monitor-brackets": Attack(
    "monitor: many brackets", _monitor_flood(payloads.brackets)
  ),
  "monitor-counted": Attack(
    "monitor: events that count", _monitor_flood(payloads.counted)
  ),
  "monitor-garbage": Attack(
    "monitor: garbage", _monitor_flood(payloads.garbage)
  ),
  "monitor-long": Attack(
    "monitor: 1 MB messages", _monitor_flood(payloads.long)
  ),
  "monitor-unending": Attack(
    "monitor: a message without an end", _monitor_flood(payloads.unending)
  ),
  "monitor-hangup": Attack("monitor: answers and hangs up", _hang_up),
  "monitor-sockets": Attack("monitor: a new socket each ms", _new_sockets),
  "monitor-lives": Attack("monitor: a new life each ms", _short_lives),
  "journal-chatter": Attack(
    "journal: ordinary events", _journal_flood(payloads.chatter)
  ),
  "journal-braces": Attack("journal: {}{}{}", _journal_flood(payloads.braces)),
  "journal-counted": Attack(
    "journal: events that count", _journal_flood(payloads.counted)
  ),
  "journal-garbage": Attack(
    "journal: garbage", _journal_flood(payloads.garbage)
  ),
  "journal-long": Attack(
    "journal: 1 MB messages", _journal_flood(payloads.long)
  ),
  "journal-chatter-paced": Attack(
    "journal: events, 20 MB/s", _journal_flood(payloads.chatter, 20)
  ),
  "journal-braces-paced": Attack(
    "journal: {}{}{}, 3 MB/s", _journal_flood(payloads.braces, 3)
  ),
  "journal-counted-paced": Attack(
    "journal: events that count, 20 MB/s", _journal_flood(payloads.counted, 20)
  ),
  "journal-fill": Attack("journal: fills the file system", _journal_fill),
  "journal-bytes": Attack("journal: a close after each byte", _journal_bytes),
  "journal-closings": Attack(
    "journal: closed after each event", _journal_closings
  ),
  "journal-touch": Attack("journal: its .in touched each ms", _touch),
  "closed-chatter": Attack(
    "closed journals, 10 MB: events", _closed_journals(payloads.chatter)
  ),
  "closed-braces": Attack(
    "closed journals, 10 MB: {}{}{}", _closed_journals(payloads.braces)
  ),
  "closed-garbage": Attack(
    "closed journals, 10 MB: garbage", _closed_journals(payloads.garbage)
  ),
}


def main() -> NoReturn:
  """Reads the command line, and attacks."""
  end_with_parent()
  directory, instance, key, seconds = sys.argv[1:]
  signal.setitimer(signal.ITIMER_REAL, float(seconds))
  ATTACKS[key].play(Place(os.path.join(directory, instance)))


if __name__ == "__main__":
  main()
