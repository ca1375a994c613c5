# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Interrupts ganeti-kvmd-setup at every point, and sees what comes of it.

Runs on a machine of its own. A command is run in a child process that ends, as
if it was killed, just before one of the changes that it makes to the machine.
After that each file of Ganeti's has to be its own or ours; then a command is
run to its end, and all has to be as it is without the interruption.
"""

from __future__ import annotations

import collections.abc
import functools
import os
import runpy
import subprocess
import sys
import typing

_KILLED = 9

#: The functions through which all changes are made
_CHANGES = ((os, "rename"), (os, "link"), (os, "symlink"), (os, "unlink"))


def _is_change(command: collections.abc.Sequence[str]) -> bool:
  return command[0] == "dpkg-divert" and bool(
    {"--add", "--remove"} & {*command}
  )


def _end_before(number: int) -> None:
  """Lets this process end just before it makes a change.

  @param number: which change, from 0

  """
  left = number

  def count() -> None:
    nonlocal left
    if left == 0:
      os._exit(_KILLED)
    left -= 1

  def counting(function: typing.Any) -> typing.Any:
    def counted(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
      count()
      return function(*args, **kwargs)

    return counted

  for module, name in _CHANGES:
    setattr(module, name, counting(getattr(module, name)))
  run = subprocess.run

  def counted_run(command: typing.Any, **kwargs: typing.Any) -> typing.Any:
    if _is_change(command):
      count()
    return run(command, **kwargs)

  subprocess.run = counted_run


class Explorer:
  """Runs the program in children of this process."""

  def __init__(self, tool: str) -> None:
    found = runpy.run_path(tool)
    self._main = found["main"].main
    self._installation = found["INSTALLATION"]
    # What else it does was tested elsewhere, and takes long
    from ganeti.tools.kvmd_setup import node, records

    node.Ganeti.check_hypervisor = lambda *_, **__: None
    node.check_daemon = lambda _: None
    node.Daemon.process = lambda _: None
    records._owner = functools.lru_cache(maxsize=None)(records._owner)
    path = found["main"].Setup(self._installation)._daemon.paths.place
    node.Ganeti.daemon_path = lambda _: path
    # Two files are as good as three
    found["main"].Setup._replace_manual = lambda *_: []
    setup = found["main"].Setup(self._installation)
    self._files = [setup._daemon.paths, setup._hypervisor.paths]
    self._stock = [self._content(each.place) for each in self._files]
    self._ours = [each.ours for each in self._files]

  def explore(self, command: str, following: str) -> None:
    """Interrupts a command at every point.

    @param following: the command that is run after the interruption

    """
    other = "disable" if command == "enable" else "enable"
    self._run(other)
    number = 0
    while True:
      if self._run(command, number) == 0:
        break
      for each, stock, ours in zip(self._files, self._stock, self._ours):
        content = self._content(each.place)
        assert content in (stock, ours), (command, number, each)
      assert self._run(following) == 0, (command, number)
      wanted = self._ours if following == "enable" else self._stock
      found = [self._content(each.place) for each in self._files]
      assert found == wanted, (command, number)
      print(f"{command}, interrupted before change {number}, {following}")
      if following == command:
        self._run(other)
      number += 1

  def _run(self, command: str, end_before: int = -1) -> int:
    """Runs a command.

    @param end_before: the number of the change that it does not live to make
    @return: its exit status

    """
    sys.stdout.flush()
    child = os.fork()
    if child:
      _, status = os.waitpid(child, 0)
      return os.WEXITSTATUS(status)
    status = 1
    try:
      with open(os.devnull, "w", encoding="ascii") as null:
        sys.stdout = null
        _end_before(end_before)
        status = self._main(self._installation, [command])
    finally:
      os._exit(status)

  @staticmethod
  def _content(path: str) -> str:
    """What is in a file; for a link, what it says."""
    if os.path.islink(path):
      return os.readlink(path)
    with open(path, encoding="utf-8") as file:
      return file.read()


def main() -> None:
  """Explores each command, with either after it."""
  explorer = Explorer(sys.argv[1])
  for command in ("enable", "disable"):
    for following in ("enable", "disable"):
      explorer.explore(command, following)
  explorer._run("disable")


if __name__ == "__main__":
  main()
