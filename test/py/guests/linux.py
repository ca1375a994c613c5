# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A small Linux guest: Debian's cloud kernel and a busybox.

Both come from Debian's packages, which are unpacked into a cache and never
installed. Once there, no network is needed.

The guest says READY on its console and then does what it is told there, one
of POWER_OFF and REBOOT. It turns itself off at the power button, too.

"""

from __future__ import annotations

import dataclasses
import lzma
import os
import pathlib
import re
import stat
import subprocess
import tarfile

from guests import lifetime, qemu

READY = b"the Linux guest is up"
POWER_OFF = b"poweroff\n"
REBOOT = b"reboot\n"

#: Depends on the newest of the packages that have a kernel in them
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_BUSYBOX_PACKAGE = "busybox-static"

_KERNEL = "vmlinuz"
_BUSYBOX = "busybox"
#: In the order in which they are loaded. One that is missing is built in.
_MODULES = ("button.ko", "evdev.ko")

#: What is taken out of the packages, and where there it is
_WANTED = {
  _KERNEL: re.compile(r"/boot/vmlinuz-[^/]+$"),
  _BUSYBOX: re.compile(r"/bin/busybox$"),
  "button.ko": re.compile(r"/drivers/acpi/button\.ko(\.xz)?$"),
  "evdev.ko": re.compile(r"/drivers/input/evdev\.ko(\.xz)?$"),
}

#: How long one apt-get may take, in seconds
_APT_PATIENCE = 300

#: Its unprivileged user may not write where it is told to download to, of
#: which it would complain, and it would take its time to see that no network
#: is there
_APT_OPTIONS = (
  "-q",
  "-o",
  "APT::Sandbox::User=root",
  "-o",
  "Acquire::Retries=0",
)

_INIT = f"""#!/bin/busybox sh
# The first process of the guest
busybox() {{ /bin/busybox "$@"; }}

busybox mount -t devtmpfs none /dev
for module in {" ".join(_MODULES)}; do
  [ ! -e "/$module" ] || busybox insmod "/$module"
done

# The power button is an input device; whatever it sends, it was pressed. Only
# what it sends while the device is open can be read, so that comes first.
for device in /dev/input/event*; do
  exec 3<"$device"
  {{
    busybox dd of=/dev/null bs=24 count=1 <&3 2>/dev/null
    busybox poweroff -f
  }} &
done

echo "{READY.decode()}"
while read -r word; do
  case $word in
    poweroff | reboot) busybox "$word" -f ;;
  esac
done
"""


class UnavailableError(Exception):
  """There is no Linux guest on this machine; says in one line why."""


def cache_directory() -> pathlib.Path:
  """Where packages' contents are kept, as in devel/lib.sh."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "ganeti-kvmd"


def is_cached() -> bool:
  """Whether the guest needs no network."""
  return _files().is_dir()


def guest() -> qemu.Guest:
  """The Linux guest.

  @raise UnavailableError: if it is neither cached nor can be downloaded

  """
  files = _fetch()
  initramfs = qemu.file_in_memory(_initramfs(files))
  # A panic would have to be seen, not rebooted away
  command_line = "console=ttyS0 quiet panic=0"
  return qemu.Guest(
    options=(
      *("-m", "192", "-kernel", str(files / _KERNEL)),
      *("-initrd", f"/proc/self/fd/{initramfs}", "-append", command_line),
    ),
    descriptors=(initramfs,),
    ready=READY,
  )


def _files() -> pathlib.Path:
  return cache_directory() / "linux-guest"


def _fetch() -> pathlib.Path:
  """Make sure that the packages' contents are in the cache.

  @return: the directory with the kernel, its modules and busybox

  """
  final = _files()
  if final.is_dir():
    return final
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    with lifetime.scratch_directory(final.parent) as scratch:
      _download(scratch)
      contents = scratch / "contents"
      contents.mkdir()
      for package in sorted(scratch.glob("*.deb")):
        _unpack(package, contents)
      for name in (_KERNEL, _BUSYBOX):
        if not (contents / name).exists():
          raise UnavailableError(f"no {name} in the packages downloaded")
      _rename(contents, final)
  except (OSError, tarfile.TarError, lzma.LZMAError) as err:
    raise UnavailableError(str(err)) from err
  return final


def _rename(contents: pathlib.Path, final: pathlib.Path) -> None:
  try:
    contents.rename(final)
  except OSError:
    # Someone else who fetched it at the same time was faster
    if not final.is_dir():
      raise


def _download(directory: pathlib.Path) -> None:
  """Download the packages, if need be after updating the package lists."""
  try:
    _download_listed(directory)
  except UnavailableError:
    _apt("apt-get", ["update"], directory)
    _download_listed(directory)


def _download_listed(directory: pathlib.Path) -> None:
  answer = _apt("apt-cache", ["depends", _KERNEL_PACKAGE], directory)
  kernel = re.search(r"Depends: (linux-image-\S+)", answer)
  if not kernel:
    raise UnavailableError(f"apt knows no package {_KERNEL_PACKAGE}")
  wanted = [kernel.group(1), _BUSYBOX_PACKAGE]
  _apt("apt-get", ["download", *wanted], directory)


def _apt(tool: str, command: list[str], directory: pathlib.Path) -> str:
  """Run one of apt's commands in a directory.

  @return: what it printed

  """
  try:
    done = subprocess.run(
      [tool, *_APT_OPTIONS, *command],
      cwd=directory,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=_APT_PATIENCE,
      check=False,
    )
  except FileNotFoundError:
    raise UnavailableError(f"{tool}, which would get it, is missing") from None
  except subprocess.TimeoutExpired:
    raise UnavailableError(f"{tool} {command[0]} took too long") from None
  if done.returncode:
    words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    # The address says no more than the package's name
    reason = re.sub(r"^E: |https?://\S+ *", "", words[-1])
    raise UnavailableError(f"{tool} {' '.join(command)}: {reason}")
  return done.stdout


def _unpack(package: pathlib.Path, directory: pathlib.Path) -> None:
  """Take the files that are needed out of a Debian package."""
  command = ["dpkg-deb", "--fsys-tarfile", str(package)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker:
    with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
      for member in archive:
        for name, place in _WANTED.items():
          stream = archive.extractfile(member)
          if stream is None or not place.search(member.name):
            continue
          content = stream.read()
          if member.name.endswith(".xz"):
            content = lzma.decompress(content)
          (directory / name).write_bytes(content)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A file in the initramfs."""

  name: str
  mode: int
  content: bytes = b""
  #: The numbers of a device
  major: int = 0
  minor: int = 0


def _initramfs(files: pathlib.Path) -> bytes:
  """What the kernel finds in its root directory."""
  directory = stat.S_IFDIR | 0o755
  program = stat.S_IFREG | 0o755
  entries = [
    _Entry("bin", directory),
    _Entry("bin/busybox", program, (files / _BUSYBOX).read_bytes()),
    _Entry("dev", directory),
    # Where the first process reads and writes
    _Entry("dev/console", stat.S_IFCHR | 0o600, major=5, minor=1),
    _Entry("init", program, _INIT.encode()),
  ]
  for name in _MODULES:
    if (files / name).exists():
      content = (files / name).read_bytes()
      entries.append(_Entry(name, stat.S_IFREG | 0o644, content))
  return _archive(entries)


def _archive(entries: list[_Entry]) -> bytes:
  """Put files into an archive as cpio makes it in its "newc" format."""
  archive = b""
  for inode, entry in enumerate([*entries, _Entry("TRAILER!!!", 0)], start=1):
    name = entry.name.encode() + b"\0"
    links = 1
    fields = [inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0]
    fields += [entry.major, entry.minor, len(name), 0]
    archive += b"070701" + b"".join(b"%08x" % field for field in fields)
    for part in (name, entry.content):
      archive += part
      archive += bytes(-len(archive) % 4)
  return archive
