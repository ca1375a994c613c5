# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A whole guest in the 512 bytes of a boot sector.

It stands in for an operating system and its user. Loaded by the BIOS, it turns
ACPI on, says READY on the first serial port and then sleeps from one timer
tick (55 ms) to the next. At each tick it looks at

  - the power button: it says BUTTON and, as operating systems do, turns the
    machine off, unless it was told to ignore it;
  - the serial port: a byte there is a L{Command}; it is echoed, then done.

So whoever holds the other end of the serial line plays the user in the guest,
and waits for an answer instead of guessing how long something takes.

The addresses are those of QEMU's machine type C{pc}.

"""

from __future__ import annotations

import enum
import struct

#: Said once after each boot
READY = b"R"

#: Said when the power button was pressed
BUTTON = b"B"


class Command(enum.Enum):
  """What the user in the guest can do."""

  POWER_OFF = b"o"
  #: Suspend to disk, which turns the machine off in a way of its own
  HIBERNATE = b"h"
  RESET = b"r"
  #: A reset by the processor, which can do nothing else any more
  TRIPLE_FAULT = b"t"
  #: The kernel gave up; QEMU learns it only with C{-device pvpanic}
  PANIC = b"p"
  #: The kernel gave up, and another took over to save what was in memory
  LOAD_CRASH_KERNEL = b"c"
  #: Asks the watchdog to act in 0 s; needs C{-device ib700}
  ARM_WATCHDOG = b"w"
  #: Reads the first sector of the first hard disk
  READ_DISK = b"d"
  IGNORE_BUTTON = b"i"
  OBEY_BUTTON = b"b"


_LOAD_ADDRESS = 0x7C00
_SECTOR_SIZE = 512
_SIGNATURE = b"\x55\xaa"
#: Where in the sector six bytes of zero are
_ZEROS = 0x1F0

# Where the hardware is
_PM1_STATUS = 0x600
_PM1_ENABLE = 0x602
_PM1_CONTROL = 0x604
_SMI_COMMAND = 0xB2
_KEYBOARD_CONTROLLER = 0x64
_PVPANIC = 0x505
_IB700_ENABLE = 0x443
_SERIAL_DATA = 0x3F8
_SERIAL_STATUS = 0x3FD

# What it is told or says
_POWER_BUTTON = 0x0100  # in _PM1_STATUS and _PM1_ENABLE
_SLEEP_OFF = 0x2000  # to _PM1_CONTROL: go to sleep, sleep type 0
_SLEEP_TO_DISK = 0x2800  # the same, sleep type 2
_ACPI_ON = 0xF1
_PULSE_RESET_LINE = 0xFE
_PANICKED = 0x01
_CRASH_LOADED = 0x02
_AT_ONCE = 0x0F  # to _IB700_ENABLE
_BYTE_ARRIVED = 0x01  # in _SERIAL_STATUS

# What a command is that takes no more than to tell a device
_WORDS = {
  Command.POWER_OFF: (_PM1_CONTROL, _SLEEP_OFF),
  Command.HIBERNATE: (_PM1_CONTROL, _SLEEP_TO_DISK),
}
_BYTES = {
  Command.RESET: (_KEYBOARD_CONTROLLER, _PULSE_RESET_LINE),
  Command.PANIC: (_PVPANIC, _PANICKED),
  Command.LOAD_CRASH_KERNEL: (_PVPANIC, _CRASH_LOADED),
  Command.ARM_WATCHDOG: (_IB700_ENABLE, _AT_ONCE),
}

#: Has the BIOS read the first sector of the first hard disk, and leaves bx
_READ_SECTOR = (
  "53"  # push bx
  "31c08ec0"  # es = 0
  "bb0090"  # mov bx, 0x9000: where to
  "b80102"  # mov ax, 0x0201: read one sector
  "b90100"  # mov cx, 1: cylinder 0, sector 1
  "ba8000"  # mov dx, 0x80: head 0, first hard disk
  "cd13"  # int 0x13
  "5b"  # pop bx
)


class _Assembler:
  """Strings together 16-bit x86 instructions, just those needed here."""

  def __init__(self) -> None:
    self.code = bytearray()
    self._labels: dict[str, int] = {}
    self._jumps: list[tuple[int, str]] = []

  def put(self, instructions: str) -> None:
    """Add instructions, given in hexadecimal."""
    self.code += bytes.fromhex(instructions)

  def label(self, name: str) -> None:
    """Name the place that the next instruction goes to."""
    self._labels[name] = len(self.code)

  def write(self, port: int, value: int) -> None:
    """Write a byte."""
    self.code += struct.pack("<BH", 0xBA, port)  # mov dx, port
    self.code += struct.pack("<BB", 0xB0, value)  # mov al, value
    self.put("ee")  # out dx, al

  def write_word(self, port: int, value: int) -> None:
    """Write two bytes."""
    self.code += struct.pack("<BH", 0xBA, port)  # mov dx, port
    self.code += struct.pack("<BH", 0xB8, value)  # mov ax, value
    self.put("ef")  # out dx, ax

  def read(self, port: int) -> None:
    """Read a byte into al."""
    self.code += struct.pack("<BH", 0xBA, port)  # mov dx, port
    self.put("ec")  # in al, dx

  def read_word(self, port: int) -> None:
    """Read two bytes into ax."""
    self.code += struct.pack("<BH", 0xBA, port)  # mov dx, port
    self.put("ed")  # in ax, dx

  def test(self, bits: int) -> None:
    """Look whether any of some bits in ax is set, for L{jump_if_zero}."""
    self.code += struct.pack("<BH", 0xA9, bits)  # test ax, bits

  def jump(self, label: str) -> None:
    """Go on at a label."""
    self._jump("e9", label)  # jmp label

  def jump_if_zero(self, label: str) -> None:
    """Go on at a label if the last test found nothing."""
    self._jump("0f84", label)  # jz label

  def jump_if_read(self, value: int, label: str) -> None:
    """Go on at a label if al holds a value."""
    self.code += struct.pack("<BB", 0x3C, value)  # cmp al, value
    self._jump("0f84", label)  # je label

  def _jump(self, instruction: str, label: str) -> None:
    self.put(instruction)
    self._jumps.append((len(self.code), label))
    self.put("0000")

  def finish(self) -> bytes:
    """Fill in where the jumps go to.

    @return: the program

    """
    for place, label in self._jumps:
      # Counted from the end of the jump
      distance = self._labels[label] - (place + 2)
      struct.pack_into("<h", self.code, place, distance)
    return bytes(self.code)


def _program() -> bytes:
  asm = _Assembler()

  # Register bl keeps whether the power button is obeyed. The stack and the
  # timer interrupt, which ends a `hlt`, are the BIOS's.
  asm.put("31c0")  # xor ax, ax
  asm.put("8ed8")  # mov ds, ax
  asm.put("b301")  # mov bl, 1
  asm.write(_SMI_COMMAND, _ACPI_ON)
  asm.write_word(_PM1_ENABLE, _POWER_BUTTON)
  asm.write(_SERIAL_DATA, READY[0])

  asm.label("wait")
  asm.put("fb")  # sti
  asm.put("f4")  # hlt
  asm.read_word(_PM1_STATUS)
  asm.test(_POWER_BUTTON)
  asm.jump_if_zero("no button")
  asm.write_word(_PM1_STATUS, _POWER_BUTTON)  # writing a bit clears it
  asm.write(_SERIAL_DATA, BUTTON[0])
  asm.put("84db")  # test bl, bl
  asm.jump_if_zero("wait")
  asm.jump(Command.POWER_OFF.name)

  asm.label("no button")
  asm.read(_SERIAL_STATUS)
  asm.test(_BYTE_ARRIVED)
  asm.jump_if_zero("wait")
  asm.read(_SERIAL_DATA)
  asm.put("ee")  # out dx, al: the echo
  for command in Command:
    asm.jump_if_read(command.value[0], command.name)
  asm.jump("wait")

  for command, (port, value) in _WORDS.items():
    asm.label(command.name)
    asm.write_word(port, value)
    asm.jump("wait")

  for command, (port, value) in _BYTES.items():
    asm.label(command.name)
    asm.write(port, value)
    asm.jump("wait")

  asm.label(Command.TRIPLE_FAULT.name)
  # With an interrupt table of length zero the processor can serve neither the
  # interrupt, nor the fault which that is, nor the fault which that is
  asm.put("0f011e")  # lidt [zeros]
  asm.code += struct.pack("<H", _LOAD_ADDRESS + _ZEROS)
  asm.put("cc")  # int3

  asm.label(Command.READ_DISK.name)
  asm.put(_READ_SECTOR)
  asm.jump("wait")

  asm.label(Command.IGNORE_BUTTON.name)
  asm.put("b300")  # mov bl, 0
  asm.jump("wait")

  asm.label(Command.OBEY_BUTTON.name)
  asm.put("b301")  # mov bl, 1
  asm.jump("wait")

  return asm.finish()


def image() -> bytes:
  """The guest, as an image for a floppy or a disk."""
  program = _program()
  if len(program) > _ZEROS:
    raise ValueError(f"{len(program)} bytes do not fit into a boot sector")
  return program.ljust(_SECTOR_SIZE - len(_SIGNATURE), b"\0") + _SIGNATURE
