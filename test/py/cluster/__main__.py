# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""devel/cluster: a Ganeti cluster to try things on."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

from cluster import comparison
from cluster.cluster import GUEST, Cluster
from cluster.instance import kvm_extra
from cluster.node import BootError, CommandError

_NAME = "devel"
_SOURCE_DIR = pathlib.Path(__file__).resolve().parents[3]


def _parse(arguments: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="devel/cluster",
    description="a real Ganeti cluster in namespaces on this machine, which"
    " itself stays as it is",
  )
  commands = parser.add_subparsers(dest="command", required=True)

  up = commands.add_parser("up", help="start it")
  up.add_argument(
    "--nodes",
    type=int,
    default=1,
    choices=range(1, 10),
    metavar="NUMBER",
    help="how many nodes it is to have (default: 1)",
  )

  shell = commands.add_parser("shell", help="run a command on a node")
  shell.add_argument("node", help="node1, node2, ...")
  shell.add_argument(
    "words",
    nargs="*",
    metavar="COMMAND",
    help="what to run, after a --; by default, a shell",
  )

  commands.add_parser("status", help="say what there is")
  commands.add_parser("down", help="end it, without a trace")
  commands.add_parser(
    "compare",
    help=f"play everything with the stock daemon, for {comparison.PATH}"
    " (on clusters of its own; takes some minutes)",
  )
  return parser.parse_args(arguments)


def _find() -> Cluster | None:
  return Cluster.find(_NAME, [_SOURCE_DIR])


def _up(nodes: int) -> int:
  began = time.monotonic()
  cluster = _find()
  if cluster is not None and not cluster.complete:
    print("an earlier start was interrupted: starting anew")
    _down()
    cluster = None
  if cluster is None:
    cluster = Cluster.start(_NAME, [_SOURCE_DIR], outlive=True)
  while len(cluster.nodes) < nodes:
    cluster.add_node()
  names = ", ".join(node.short_name for node in cluster.nodes)
  print(f"up: {names} ({time.monotonic() - began:.1f} s)")
  print("now try: devel/cluster shell node1")
  print(f"This tree is there at {_SOURCE_DIR}, to be read only.")
  print(f"A guest that obeys the power button: {GUEST}; add it to an instance")
  print(f"with -H '{kvm_extra()}'")
  return 0


def _shell(short_name: str, words: list[str]) -> int:
  cluster = _find()
  for node in cluster.nodes if cluster else []:
    if node.short_name == short_name:
      # The caller's terminal is not one that the node knows
      shell = ["bash", "-l"]
      if sys.stdin.isatty():
        shell = ["script", "--quiet", "--command", "bash -l", "/dev/null"]
      node.execute(*(words or shell))
  print(f"there is no {short_name}: try devel/cluster status", file=sys.stderr)
  return 1


def _status() -> int:
  cluster = _find()
  if cluster is None:
    print("down")
    return 0
  for node in cluster.nodes:
    running = [
      daemon.strip()
      for daemon in node.run("ps", "-e", "-o", "comm=").stdout.split("\n")
      if daemon.startswith("ganeti-")
    ]
    print(f"{node.name}: {', '.join(running) or 'no daemon of Ganeti'}")
  if not cluster.complete:
    print("not complete: still starting, or interrupted")
    return 1
  print(cluster.gnt("node", "list").strip())
  print(cluster.gnt("instance", "list").strip())
  return 0


def _down() -> int:
  while True:
    cluster = _find()
    if cluster is None:
      return 0
    cluster.stop()


def main(arguments: list[str]) -> int:
  """Do what the command line says.

  @return: the exit status

  """
  options = _parse(arguments)
  try:
    if options.command == "up":
      return _up(options.nodes)
    if options.command == "shell":
      return _shell(options.node, options.words)
    if options.command == "status":
      return _status()
    if options.command == "compare":
      comparison.write(_SOURCE_DIR)
      return 0
    return _down()
  except (BootError, CommandError) as err:
    print(f"devel/cluster: {err}", file=sys.stderr)
    return 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
