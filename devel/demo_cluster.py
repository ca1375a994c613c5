# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Shows a user's poweroff on a real Ganeti cluster.

To be started by devel/demo, which builds the daemon before.

"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

TOP = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(TOP / "test" / "py"))

from cluster import sides  # noqa: E402
from cluster.cluster import Cluster  # noqa: E402
from cluster.instance import (  # noqa: E402
  ERROR_DOWN,
  RUNNING,
  USER_DOWN,
  Instance,
  State,
)

FIELDS = "name,hypervisor,status,admin_state"


def say(text: str) -> None:
  """Print a line of ours."""
  print(f"demo: {text}", flush=True)


def play(cluster: Cluster) -> list[str]:
  """Let one instance's user turn it off, and kill another.

  @return: what was not as it should be

  """
  wrong = []

  def look(expected: dict[Instance, State]) -> None:
    print("$ gnt-instance list")
    print(cluster.gnt("instance", "list", "-o", FIELDS), flush=True)
    wrong.extend(
      f"{instance.name} is {instance.state()}, not {state}"
      for instance, state in expected.items()
      if instance.state() != state
    )

  web, mail = Instance(cluster, "web"), Instance(cluster, "mail")
  for instance in (web, mail):
    say(f"starting {instance.name}")
    instance.add()
    instance.start()
  look({web: RUNNING, mail: RUNNING})
  say(f"the user of {web.name} turns it off, from inside")
  web.power_off()
  say(f"somebody kills the QEMU of {mail.name}")
  mail.kill("KILL")
  look({web: USER_DOWN, mail: ERROR_DOWN})
  say("Ganeti's watcher makes its round, and restarts what crashed")
  cluster.watch()
  look({mail: RUNNING})
  return wrong


def main() -> int:
  """Show everything.

  @return: the exit status

  """
  # So that the cluster is stopped then, too
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  build = pathlib.Path(os.environ["GANETI_KVMD_BUILD"])
  side = sides.Ours(build)
  say("making a cluster of one node, with our daemon and hypervisor side")
  cluster = Cluster.start(f"demo-{os.getpid()}", {TOP, build}, side.prepare)
  try:
    wrong = play(cluster)
  finally:
    cluster.stop()
  for each in wrong:
    say(each)
  if wrong:
    say("FAILED: Ganeti does not say what it should")
    return 1
  say("Ganeti says what happened, and does what it should about it")
  return 0


if __name__ == "__main__":
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    say("FAILED: interrupted")
    sys.exit(130)
