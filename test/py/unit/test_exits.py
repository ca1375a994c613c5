# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What the kernel tells of processes that ended badly."""

from __future__ import annotations

import collections.abc
import contextlib
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from unittest import mock

import pytest
from ganeti.kvmd.node import exits

_PATIENCE_MS = 10_000

#: F_SETPIPE_SZ, which Python names since 3.10
_SET_PIPE_SIZE = 1031


def _hang_up() -> None:
  # Under nohup it would be ignored.
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGHUP)


def _kill() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
  os._exit(3)


def _run(end: collections.abc.Callable[[], None]) -> int:
  child = os.fork()
  if not child:
    end()
    os._exit(0)
  os.waitpid(child, 0)
  return child


def _listen() -> exits.Exits | None:
  """Listens; None where that is denied, with the errors that say so."""
  try:
    return exits.Exits()
  except OSError as err:
    # Not root, in a container, or a kernel that does not have it
    if err.errno in {errno.EPERM, errno.EACCES, errno.EPROTONOSUPPORT}:
      return None
    raise


@pytest.mark.parametrize(
  ("end", "how"),
  [
    (_hang_up, "was killed by SIGHUP"),
    (_kill, "was killed by SIGKILL"),
    (_fail, "ended with status 3"),
  ],
)
def test_bad_end(end: collections.abc.Callable[[], None], how: str) -> None:
  listener = _listen()
  if listener is None:
    return
  poller = select.poll()
  poller.register(listener.fileno(), select.POLLIN)
  before = time.monotonic()
  quiet = _run(lambda: None)
  child = _run(end)
  found: list[exits.Exit] = []
  while child not in [each.process for each in found]:
    assert poller.poll(_PATIENCE_MS)
    found += listener.read({child, quiet}).exits
  listener.close()
  (ended,) = [each.ended for each in found if each.process == child]
  assert before < ended < time.monotonic()
  ends = {each.process: each.how.split(",")[0] for each in found}
  assert ends[child] == how
  assert quiet not in ends


@pytest.mark.parametrize(
  ("status", "for_memory", "how"),
  [
    (signal.SIGKILL, True, "was killed by the kernel for want of memory"),
    (signal.SIGTERM, True, "was killed by SIGTERM"),
    (signal.SIGHUP, True, "was killed by SIGHUP"),
    (signal.SIGSEGV | 0x80, False, "was killed by SIGSEGV, and dumped core"),
    (64, False, "was killed by SIGRTMAX"),
    (33, False, "was killed by signal 33"),
    (255 << 8, False, "ended with status 255"),
  ],
)
def test_description(status: int, for_memory: bool, how: str) -> None:
  assert exits._describe(status, for_memory=for_memory) == how


class Everyone:
  """All processes there may be."""

  def __contains__(self, process: object) -> bool:
    return True


class Connector:
  """A process connector that tells what it is told to.

  @ivar commands: what was sent to it
  @ivar told: what it has to tell: ends, or errors

  """

  def __init__(self) -> None:
    self.commands: list[int] = []
    self.told: list[bytes | OSError] = []
    self._inner, self._outer = socket.socketpair()

  def end(self, process: int, status: int) -> None:
    event = exits._EVENT.pack(
      exits._EXIT, 0, time.monotonic_ns(), process, process, status
    )
    self.told.append(bytes(exits._HEADERS.size) + event + bytes(4))

  def send(self, data: bytes) -> None:
    (command,) = struct.unpack("=I", data[-4:])
    self.commands.append(command)

  def recv(self, size: int) -> bytes:
    if not self.told:
      raise BlockingIOError
    told = self.told.pop(0)
    if isinstance(told, OSError):
      raise told
    return told

  def fileno(self) -> int:
    return self._outer.fileno()

  def close(self) -> None:
    self.commands.append(-1)
    self._inner.close()
    self._outer.close()


class KernelLog:
  """A kernel's log, of which one record is read at a time."""

  def __init__(self) -> None:
    self.reader, self._writer = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    # A page for each.
    fcntl.fcntl(self._writer, _SET_PIPE_SIZE, 64 * 4096)

  def add(self, text: str, age: float = 0.0) -> None:
    microseconds = (time.monotonic() - age) * 1e6
    os.write(self._writer, f"3,1234,{microseconds:.0f},-;{text}\n".encode())

  def kill(self, process: int, age: float = 0.0) -> None:
    self.add(
      f"Memory cgroup out of memory: Killed process {process}"
      " (qemu-system-x86) total-vm:1kB",
      age,
    )

  def close(self) -> None:
    os.close(self._writer)


@pytest.fixture
def connector(monkeypatch) -> Connector:
  made = Connector()
  monkeypatch.setattr(exits, "_open_connector", lambda: made)
  return made


@pytest.fixture
def listener(connector) -> collections.abc.Iterator[exits.Exits]:
  before = len(os.listdir("/proc/self/fd"))
  made = exits.Exits()
  # This machine's own kernel has nothing to say here.
  made._kernel_log.close()
  made._kernel_log._descriptor = None
  yield made
  made.close()
  assert len(os.listdir("/proc/self/fd")) < before


@pytest.fixture
def kernel_log(listener) -> collections.abc.Iterator[KernelLog]:
  made = KernelLog()
  listener._kernel_log._descriptor = made.reader
  yield made
  made.close()


def _is_readable(listener: exits.Exits) -> bool:
  return bool(select.select([listener], [], [], 0)[0])


def test_listener_leaves_before_it_closes(connector):
  """The kernel counts those who came, and makes messages while one is left."""
  exits.Exits().close()
  assert connector.commands == [exits._LISTEN, exits._IGNORE, -1]


def test_only_ends_that_matter_are_told(connector, listener):
  connector.end(11, 3 << 8)
  connector.end(12, signal.SIGKILL)
  connector.end(13, 4 << 8)
  told, lost = listener.read({13})
  assert [(each.process, each.how) for each in told] == [
    (13, "ended with status 4")
  ]
  assert not lost


def test_so_many_at_a_time(connector, listener):
  """Processes that fail for ever do not keep the daemon for ever."""
  for process in range(1200):
    connector.end(process, 1 << 8)
  numbers = [len(listener.read(Everyone()).exits) for _ in range(4)]
  assert numbers == [512, 512, 176, 0]


def test_what_follows_a_loss_is_told(connector, listener):
  connector.told.append(OSError(errno.ENOBUFS, ""))
  connector.end(11, 1 << 8)
  connector.end(12, 1 << 8)
  told, lost = listener.read(Everyone())
  assert [each.process for each in told] == [11, 12]
  assert lost
  assert listener.read(Everyone()) == ([], False)


def test_losses_without_end(connector, listener):
  connector.told = [OSError(errno.ENOBUFS, "") for _ in range(600)]
  assert listener.read(Everyone()) == ([], True)
  assert len(connector.told) == 600 - 512


def test_half_a_message(connector, listener):
  connector.told.append(b"half")
  connector.end(11, 1 << 8)
  assert [each.process for each in listener.read(Everyone()).exits] == [11]


def test_real_queue_has_room_for_many():
  listener = _listen()
  if listener is None:
    return
  # Eight times as many as there is room for by default.
  script = "for number in $(seq 2048); do (exit 77); done"
  subprocess.run(["/bin/sh", "-c", script], check=False)
  found: list[exits.Exit] = []
  while _is_readable(listener):
    told = listener.read(Everyone())
    assert len(told.exits) <= 512
    assert not told.lost
    found += told.exits
  listener.close()
  ours = [each for each in found if each.how == "ended with status 77"]
  assert len(ours) >= 2048


def test_real_filter_lets_only_bad_ends_of_whole_processes_through():
  """The daemon is not woken by anything else."""
  listener = _listen()
  if listener is None:
    return
  script = (
    "import os, threading\n"
    "for _ in range(3): threading.Thread(target=threading.Event().wait).start()"
    "\nos.kill(os.getpid(), 9)"
  )
  subprocess.run(["/bin/true"], check=True)
  threaded = subprocess.Popen([sys.executable, "-c", script])
  assert threaded.wait() == -signal.SIGKILL
  events = []
  with contextlib.suppress(BlockingIOError):
    while True:
      message = listener._socket.recv(4096)
      events.append(struct.unpack_from("=IIQIII", message, 36))
  listener.close()
  told = [process for _, _, _, _, process, _ in events]
  assert told.count(threaded.pid) == 1
  for kind, _, _, thread, process, status in events:
    assert kind == 0x80000000
    assert thread == process
    assert status != 0


def test_real_queue_overflows():
  listener = _listen()
  if listener is None:
    return
  listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
  children = [_run(_fail) for _ in range(100)]
  lost = 0
  found: list[exits.Exit] = []
  while _is_readable(listener):
    told = listener.read(children)
    found += told.exits
    lost += told.lost
  assert lost
  told_of = [each.process for each in found]
  assert told_of == [each for each in children if each in told_of]
  assert 0 < len(told_of) < 100
  # It hears of those that come after that, unless others are in between.
  for _ in range(100):
    last = _run(_fail)
    if [each.process for each in listener.read([last]).exits] == [last]:
      break
  else:
    pytest.fail("nothing is heard any more")
  listener.close()


def test_killed_for_memory(connector, listener, kernel_log):
  kernel_log.kill(11)
  kernel_log.kill(13)
  connector.end(11, signal.SIGKILL)
  connector.end(12, signal.SIGKILL)
  told = listener.read(Everyone()).exits
  # What was read for one counts for the next.
  connector.end(13, signal.SIGKILL)
  told += listener.read(Everyone()).exits
  assert [(each.process, each.how) for each in told] == [
    (11, "was killed by the kernel for want of memory"),
    (12, "was killed by SIGKILL"),
    (13, "was killed by the kernel for want of memory"),
  ]


def test_number_of_a_process_that_was_killed_long_ago(
  connector, listener, kernel_log
):
  kernel_log.kill(11, age=4000.0)
  kernel_log.kill(12, age=100.0)
  for process in 11, 12:
    connector.end(process, signal.SIGKILL)
  told = listener.read(Everyone()).exits
  assert [each.how for each in told] == [
    "was killed by SIGKILL",
    "was killed by the kernel for want of memory",
  ]


def test_kernel_log_is_read_on_in_the_next_turn(
  connector, listener, kernel_log, monkeypatch
):
  monkeypatch.setattr(exits, "_MAX_RECORDS", 8)
  for number in range(17):
    kernel_log.add(f"number {number}")
  # Nobody waits for what it says.
  assert not _is_readable(listener)
  kernel_log.kill(11)
  connector.end(11, signal.SIGKILL)
  connector.end(12, 1 << 8)
  turns = [[each.process for each in listener.read(Everyone()).exits]]
  while _is_readable(listener):
    turns.append([each.process for each in listener.read(Everyone()).exits])
  assert turns == [[12], [], [11]]
  kernel_log.add("more")
  assert not _is_readable(listener)


def test_kernel_log_without_an_end(
  connector, listener, kernel_log, monkeypatch
):
  monkeypatch.setattr(exits, "_MAX_RECORDS", 8)
  monkeypatch.setattr(exits, "_PATIENCE", 0.0)
  for number in range(17):
    kernel_log.add(f"number {number}")
  connector.end(11, signal.SIGKILL)
  (told,) = listener.read(Everyone()).exits
  assert told.how == "was killed by SIGKILL"


def test_victims_without_end_are_not_remembered(listener, kernel_log):
  kept = exits._MAX_VICTIMS
  for process in range(kept + 100):
    kernel_log.kill(process)
    listener._kernel_log.read()
  now = time.monotonic()
  remembered = [
    listener._kernel_log.has_killed(process, now)
    for process in range(kept + 100)
  ]
  assert remembered == 100 * [False] + kept * [True]


def test_real_kernel_log_is_read_to_its_end():
  if not os.access("/dev/kmsg", os.R_OK):
    return
  log = exits._KernelLog()
  assert log._descriptor is not None
  os.lseek(log._descriptor, 0, os.SEEK_SET)
  while not log.read():
    pass
  with pytest.raises(BlockingIOError):
    os.read(log._descriptor, exits._RECORD_SIZE)
  log.close()


@pytest.mark.parametrize(
  ("namespace", "expected"),
  [
    (0xEFFFFFFC, errno.EPROTONOSUPPORT),
    (0xEFFFFFFB, errno.EPERM),
    (0xEFFFFFFD, errno.EPERM),
    (4026532000, errno.EPERM),
  ],
)
def test_only_the_first_process_namespace_is_told(namespace, expected):
  """PROC_PID_INIT_INO of linux/proc_ns.h; this kernel has no connector."""
  found = mock.Mock(st_ino=namespace)
  missing = OSError(errno.EPROTONOSUPPORT, "missing")
  with mock.patch("os.stat", return_value=found):
    with mock.patch("socket.socket", side_effect=missing):
      with pytest.raises(OSError, match=r"missing|permitted") as caught:
        exits.Exits()
  assert caught.value.errno == expected


def test_command_is_as_the_kernel_has_it(connector):
  """By struct nlmsghdr, struct cn_msg and enum proc_cn_mcast_op."""
  sent = []
  connector.send = sent.append
  listener = exits.Exits()
  listener.close()
  assert sent == [
    struct.pack("=IHHII", 40, 3, 0, 0, os.getpid())
    + struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, operation)
    for operation in (1, 2)
  ]


def test_nothing_is_left_where_it_cannot_listen(connector):
  before = os.listdir("/proc/self/fd")

  def refuse(_):
    raise PermissionError(errno.EPERM, "")

  connector.send = refuse
  with pytest.raises(PermissionError):
    exits.Exits()
  assert connector.commands == [-1]
  assert len(os.listdir("/proc/self/fd")) == len(before) - 2


def test_nothing_is_left_where_there_is_no_filter():
  # What other tests have left is not to go in between.
  gc.collect()
  before = os.listdir("/proc/self/fd")
  first = mock.Mock(st_ino=0xEFFFFFFC)
  plain = socket.socket(socket.AF_UNIX)
  with mock.patch("os.stat", return_value=first):
    with mock.patch("socket.socket", return_value=plain):
      fault = OSError(errno.ENOPROTOOPT, "no filter")
      with mock.patch.object(exits, "_attach_filter", side_effect=fault):
        with pytest.raises(OSError, match="no filter"):
          exits.Exits()
  assert os.listdir("/proc/self/fd") == before


def test_end_is_told_at_its_time(connector, listener):
  connector.end(11, 1 << 8)
  before = time.monotonic()
  (told,) = listener.read(Everyone()).exits
  assert before - 10.0 < told.ended <= before


def test_other_events_are_no_ends(connector, listener):
  for kind in 0, 1, 2, exits._EXIT >> 1, exits._EXIT - 1:
    event = exits._EVENT.pack(kind, 0, 0, 11, 11, 1 << 8)
    connector.told.append(bytes(exits._HEADERS.size) + event)
  assert listener.read(Everyone()) == ([], False)


def test_shortest_message_and_one_that_is_shorter(connector, listener):
  event = exits._EVENT.pack(exits._EXIT, 0, 0, 11, 11, 1 << 8)
  message = bytes(exits._HEADERS.size) + event
  connector.told += [message[:-1], message]
  assert len(listener.read(Everyone()).exits) == 1


def test_other_trouble_is_not_a_loss(connector, listener):
  connector.told.append(OSError(errno.EINTR, ""))
  connector.end(11, 1 << 8)
  assert listener.read(Everyone()) == ([], False)
  assert len(listener.read(Everyone()).exits) == 1


def test_victim_is_told_once(listener, kernel_log):
  kernel_log.kill(11)
  listener._kernel_log.read()
  now = time.monotonic()
  assert listener._kernel_log.has_killed(11, now)
  assert not listener._kernel_log.has_killed(11, now)


@pytest.mark.parametrize(("age", "expected"), [(3500.0, True), (3700.0, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_victim_died_within_an_hour(listener, kernel_log, age, expected, sign):
  kernel_log.kill(11)
  listener._kernel_log.read()
  ended = time.monotonic() + sign * age
  assert listener._kernel_log.has_killed(11, ended) is expected


def test_kernel_log_that_was_overwritten(listener):
  told = [BrokenPipeError(errno.EPIPE, ""), b"3,1,1,-;a word\n", b""]
  listener._kernel_log._descriptor = -1
  with mock.patch("os.read", side_effect=told) as read:
    assert listener._kernel_log.read()
  assert read.call_count == 3
  listener._kernel_log._descriptor = None


def test_victims_last_word_counts(listener, kernel_log):
  """The number may have been given out again."""
  for age in 5000.0, 0.0:
    kernel_log.kill(11, age=age)
  listener._kernel_log.read()
  assert listener._kernel_log.has_killed(11, time.monotonic())


@pytest.mark.parametrize("status", [signal.SIGTERM, 68 << 8, 9 << 8])
def test_other_ends_do_not_wait_for_the_kernel_log(
  connector, listener, kernel_log, monkeypatch, status
):
  monkeypatch.setattr(exits, "_MAX_RECORDS", 1)
  kernel_log.add("one")
  kernel_log.add("two")
  connector.end(11, status)
  connector.end(12, signal.SIGKILL)
  told = listener.read(Everyone()).exits
  assert [each.process for each in told] == [11]


def test_end_waits_for_the_kernel_log_no_longer_than_it_has_patience(
  connector, listener, kernel_log, monkeypatch
):
  monkeypatch.setattr(exits, "_MAX_RECORDS", 1)
  for number in range(9):
    kernel_log.add(f"number {number}")
  connector.end(11, signal.SIGKILL)
  now = time.monotonic()
  turns = []
  for later in 0.0, 0.9, 1.1:
    with mock.patch("time.monotonic", return_value=now + later):
      turns.append(len(listener.read(Everyone()).exits))
  assert turns == [0, 0, 1]
