# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A real QEMU process: its monitors, its guest's serial line, its end."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import select
import signal
import socket
import time
import typing

from guests import boot_sector, lifetime

Message = dict[str, typing.Any]

BINARY = "qemu-system-x86_64"


@dataclasses.dataclass(frozen=True)
class Guest:
  """What runs in a machine."""

  #: The options that make QEMU boot it
  options: tuple[str, ...]
  #: Files that only this process has, named in the options as /proc/self/fd/N
  descriptors: tuple[int, ...]
  #: What it says on its serial line once it is up
  ready: bytes


def file_in_memory(content: bytes) -> int:
  """Make a file without a name, which no one has to remove.

  @return: its descriptor

  """
  descriptor = os.memfd_create("guest")
  with open(descriptor, "wb", closefd=False) as stream:
    stream.write(content)
  return descriptor


def _boot_sector_guest() -> Guest:
  image = file_in_memory(boot_sector.image())
  drive = f"if=floppy,format=raw,readonly=on,file=/proc/self/fd/{image}"
  return Guest(
    options=("-m", "4", "-boot", "a", "-drive", drive),
    descriptors=(image,),
    ready=boot_sector.READY,
  )


BOOT_SECTOR = _boot_sector_guest()


@dataclasses.dataclass(frozen=True)
class Machine:
  """How QEMU is started."""

  guest: Guest = BOOT_SECTOR
  #: QEMU ends where the guest would reboot
  no_reboot: bool = False
  #: QEMU does not end where the guest turns itself off
  no_shutdown: bool = False
  #: The guest can tell QEMU that it panicked
  pvpanic: bool = False
  #: Nothing runs until the administrator says so
  paused: bool = False
  #: The daemon's monitor spreads each message over many lines
  pretty: bool = False
  #: QEMU writes its events down by itself, too
  journal: bool = False
  #: What the name of the daemon's monitor ends in
  suffix: str = ".kvmd"
  #: Further options for QEMU
  extra: tuple[str, ...] = ()

  def options(self) -> list[str]:
    """The options that say so, without the monitors."""
    options = ["-accel", "tcg", "-machine", "pc", "-display", "none"]
    options += ["-no-user-config", "-nodefaults", *self.guest.options]
    if self.no_reboot:
      options.append("-no-reboot")
    if self.no_shutdown:
      options.append("-no-shutdown")
    if self.pvpanic:
      options += ["-device", "pvpanic"]
    if self.paused:
      options.append("-S")
    return [*options, *self.extra]


#: With nothing special about it
PLAIN = Machine()


def _prepare_journal(ctrl_dir: pathlib.Path, name: str) -> list[str]:
  """Do as the hypervisor does and return QEMU's options."""
  import ctrl_files  # only the build has what it needs
  from ganeti.kvmd.node import journal_files

  with ctrl_files.opened(ctrl_dir) as directory:
    return journal_files.prepare(directory, name)


class _Line:
  """One end of a socket pair whose other end QEMU has."""

  def __init__(self) -> None:
    self._socket, self.others = socket.socketpair()
    self.buffer = b""

  def send(self, data: bytes) -> None:
    """Send something.

    @raise ConnectionError: if QEMU has ended

    """
    try:
      self._socket.sendall(data)
    except BrokenPipeError:
      raise ConnectionError("QEMU has ended") from None

  def receive(self, timeout: float) -> bool:
    """Add what arrives next to the buffer.

    @return: whether anything can still arrive
    @raise TimeoutError: if nothing does in time

    """
    arrivals = select.poll()
    arrivals.register(self._socket, select.POLLIN)
    if not arrivals.poll(max(timeout, 0) * 1000):
      raise TimeoutError
    try:
      data = self._socket.recv(65536)
    except ConnectionResetError:
      # QEMU ended before it read everything that was sent
      data = b""
    self.buffer += data
    return bool(data)

  def close(self) -> None:
    self._socket.close()
    self.others.close()


class Qemu:
  """A QEMU process, started at once and killed with this process at latest.

  Its monitor for the daemon is a socket in the control directory. Another
  monitor, for the administrator, and the guest's serial line are sockets that
  have no name.

  """

  def __init__(
    self, ctrl_dir: pathlib.Path, name: str, machine: Machine = PLAIN
  ) -> None:
    """Start the process.

    @param name: the instance's name

    """
    self.name = name
    self.machine = machine
    self.monitor = ctrl_dir / f"{name}{machine.suffix}"
    #: The events that the administrator's monitor brought so far
    self.events: list[Message] = []
    self._events_waited_for = 0
    self._commands = 0
    self._serial = _Line()
    self._admin = _Line()
    # What it says on its terminal, for the case that it fails
    self._words = os.fdopen(file_in_memory(b""), "rb")
    lines = {"serial": self._serial, "admin": self._admin}

    args = [BINARY, "-name", name, *machine.options()]
    for title, line in lines.items():
      args += ["-chardev", f"socket,id={title},fd={line.others.fileno()}"]
    args += ["-serial", "chardev:serial", "-mon", "admin,mode=control"]
    args.append("-qmp-pretty" if machine.pretty else "-qmp")
    args.append(f"unix:{self.monitor},server=on,wait=off")

    if machine.journal:
      args += _prepare_journal(ctrl_dir, name)

    inherited = [line.others.fileno() for line in lines.values()]
    self._process = lifetime.start(
      args,
      pass_fds=[*inherited, *machine.guest.descriptors],
      stdout=self._words,
      stderr=self._words,
    )
    for line in lines.values():
      line.others.close()
    # Read when QEMU is so far; there are no events before
    self._send_command("qmp_capabilities", {})

  @property
  def pid(self) -> int:
    return self._process.pid

  def wait_ready(self, timeout: float = lifetime.PATIENCE) -> None:
    """Wait until the guest is up."""
    self.expect(self.machine.guest.ready, timeout)

  def tell(self, data: bytes) -> None:
    """Type something on the guest's serial line."""
    self._serial.send(data)

  def expect(self, data: bytes, timeout: float = lifetime.PATIENCE) -> None:
    """Wait until the guest says something on its serial line.

    @raise TimeoutError: if it does not
    @raise ConnectionError: if QEMU ends before

    """
    deadline = time.monotonic() + timeout
    while data not in self._serial.buffer:
      self._receive(self._serial, f"{data!r} from the guest", deadline)
    self._serial.buffer = self._serial.buffer.partition(data)[2]

  def user(self, command: boot_sector.Command) -> None:
    """Let the user in a boot-sector guest do something."""
    self.tell(command.value)
    self.expect(command.value)

  def admin(self, command: str, **arguments: typing.Any) -> typing.Any:
    """Execute a QMP command on the administrator's monitor.

    @return: what it returned
    @raise RuntimeError: if QEMU refused it

    """
    number = self._send_command(command, arguments)
    deadline = time.monotonic() + lifetime.PATIENCE
    while True:
      message = self._next_message()
      if message is None:
        self._receive(self._admin, f"reply to {command}", deadline)
      elif message.get("id") != number:
        continue
      elif "error" in message:
        raise RuntimeError(f"{self.name}: {command}: {message['error']}")
      else:
        return message["return"]

  def wait_event(self, name: str) -> Message:
    """Wait for an event that came after the one last waited for."""
    deadline = time.monotonic() + lifetime.PATIENCE
    while True:
      for event in self.events[self._events_waited_for :]:
        self._events_waited_for += 1
        if event["event"] == name:
          return event
      if self._next_message() is None:
        self._receive(self._admin, f"event {name}", deadline)

  def powerdown(self) -> None:
    """Press the power button, as an administrator does."""
    self.admin("system_powerdown")

  def signal(self, number: signal.Signals) -> None:
    self._process.send_signal(number)

  def wait(self, timeout: float = lifetime.PATIENCE) -> int:
    """Wait until the process has ended.

    @return: its exit status, or minus the signal that ended it
    @raise subprocess.TimeoutExpired: if it does not

    """
    return self._process.wait(timeout)

  def rest_of_events(self) -> list[Message]:
    """Wait for the end of the process, too.

    @return: all events that the administrator's monitor brought

    """
    self.wait()
    while self._admin.receive(lifetime.PATIENCE):
      pass
    while self._next_message() is not None:
      pass
    return self.events

  def close(self) -> None:
    """End what is left of it."""
    if self._process.poll() is None:
      self._process.kill()
      self._process.wait()
    self._serial.close()
    self._admin.close()
    self._words.close()

  def __enter__(self) -> Qemu:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _send_command(self, command: str, arguments: Message) -> int:
    """Send a QMP command.

    @return: the C{id} that the reply to it will have

    """
    self._commands += 1
    request = {"execute": command, "arguments": arguments, "id": self._commands}
    self._admin.send(json.dumps(request).encode())
    return self._commands

  def _next_message(self) -> Message | None:
    """Take a message from what arrived on the administrator's monitor."""
    line, end, rest = self._admin.buffer.partition(b"\n")
    if not end:
      return None
    self._admin.buffer = rest
    message: Message = json.loads(line)
    if "event" in message:
      self.events.append(message)
    return message

  def _receive(self, line: _Line, what: str, deadline: float) -> None:
    try:
      if line.receive(deadline - time.monotonic()):
        return
    except TimeoutError:
      raise TimeoutError(
        f"{self.name}: no {what} in time, only {line.buffer!r}"
      ) from None
    self._words.seek(0)
    words = self._words.read().decode(errors="replace").strip()
    raise ConnectionError(
      f"{self.name}: QEMU ended before {what}: {words or 'without a word'}"
    )
