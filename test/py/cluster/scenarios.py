# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What happens to instances, and what Ganeti should say of them.

A scenario plays an administrator, who has gnt-* commands, a user, who sits in
the guest, and accidents. After each of them it notes what there should be to
see and what there is. It goes on when the two differ, so that it can be played
with any daemon.

"""

from __future__ import annotations

import collections.abc
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import threading
import traceback

from guests import lifetime
from guests.boot_sector import Command

from cluster import sides
from cluster.cluster import MIGRATION_PORT, Cluster
from cluster.instance import (
  ADMIN_DOWN,
  ERROR_DOWN,
  RUNNING,
  USER_DOWN,
  USER_DOWN_NOTED,
  Instance,
  State,
)
from cluster.node import CommandError, Node, node_address

#: The guest can tell QEMU that it panicked
_PVPANIC = ("-device", "pvpanic")

#: QEMU ends where the guest would reboot
_NO_REBOOT = "reboot_behavior=exit"

#: An instance that can move
_SHARED = "sharedfile"

# What the daemon says of ends
_MIGRATED = "migrated (host-signal)"
_BY_USER = "user (guest-shutdown)"

_WATCHER_LOG = "/var/log/ganeti/watcher.log"

_RUNS = "the daemon runs"
_RUNS_NOT = "the daemon does not run"


@dataclasses.dataclass(frozen=True)
class Sight:
  """Something that there was to see."""

  #: After what
  after: str
  expected: str
  seen: str

  @property
  def right(self) -> bool:
    """Whether it was what it should be."""
    return self.expected == self.seen


class Stage:
  """Where a scenario is played, and what there was to see of it."""

  def __init__(self, cluster: Cluster, side: sides.Side) -> None:
    self.cluster = cluster
    self.side = side
    self.sights: list[Sight] = []
    #: What ended it early
    self.failure: str | None = None
    #: What the daemons had to say when something was not right
    self.logs = ""

  def note(self, after: str, expected: str, seen: str) -> None:
    """Note something that there is to see."""
    self.sights.append(Sight(after, expected, seen))

  def look(self, after: str, instance: Instance, expected: State) -> None:
    """Note what gnt-instance list says of an instance."""
    self.note(after, str(expected), str(instance.state()))

  def look_daemon(self, after: str, node: Node, *, expected: bool) -> None:
    """Note whether a node's daemon runs."""
    words = {True: _RUNS, False: _RUNS_NOT}
    self.note(after, words[expected], words[sides.daemon_runs(node)])

  def look_files(self, after: str, instance: Instance, *nodes: Node) -> None:
    """Note which nodes have a shutdown file.

    @param nodes: those that should have one

    """
    seen = instance.shutdown_files()
    names = [node.name for node in nodes]
    self.note(after, _shutdown_files(names), _shutdown_files(seen))

  def check_ends(self, instance: Instance, node: Node, *right: str) -> None:
    """Check what the daemon has said of an instance's ends on a node.

    Its history has to say the same, each end once.

    @raise TimeoutError: if it does not come to say that, and no more

    """

    def are_told() -> bool:
      said = sides.ends(node, instance)
      return said == sides.remembered(node, instance) == [*right]

    if self.side.tells_ends:
      lifetime.wait_until(
        are_told, f"ends of {instance.name} on {node.name}: {right}"
      )

  def look_all(
    self, after: str, instance: Instance, expected: State, *nodes: Node
  ) -> None:
    """Note what there is to see of an instance, with its shutdown files.

    @param nodes: those that should have one

    """
    self.look(after, instance, expected)
    self.look_files(after, instance, *nodes)

  def attempt(
    self, what: str, command: collections.abc.Callable[[], None], expected: str
  ) -> None:
    """Note whether a gnt-* command succeeds.

    @param expected: C{done} or C{refused}

    """
    try:
      command()
    except CommandError:
      seen = "refused"
    else:
      seen = "done"
    self.note(what, expected, seen)

  def define(
    self,
    short_name: str,
    *parameters: str,
    template: str = "diskless",
    node: Node | None = None,
    options: tuple[str, ...] = (),
  ) -> Instance:
    """Define an instance."""
    instance = Instance(self.cluster, short_name)
    instance.add(*parameters, template=template, node=node, options=options)
    return instance

  def start(self, instance: Instance) -> None:
    """Start an instance."""
    instance.start()
    self.side.attend(instance)

  def together(self, *steps: collections.abc.Callable[[], None]) -> None:
    """Do several things at once, where the side allows it."""
    with concurrent.futures.ThreadPoolExecutor(self.side.at_once) as pool:
      for future in [pool.submit(step) for step in steps]:
        future.result()


def _shutdown_files(names: list[str]) -> str:
  where = ", ".join(names) or "no node"
  return f"shutdown file on {where}"


@dataclasses.dataclass(frozen=True)
class Scenario:
  """Something that can be played."""

  title: str
  play: collections.abc.Callable[[Stage], None]

  def perform(self, cluster: Cluster, side: sides.Side) -> Stage:
    """Play it, to its end or until it fails.

    @return: what there was to see

    """
    stage = Stage(cluster, side)
    try:
      self.play(stage)
    except Exception:  # noqa: BLE001
      stage.failure = traceback.format_exc()
    if stage.failure or not all(sight.right for sight in stage.sights):
      stage.logs = "\n".join(map(sides.daemon_log, cluster.nodes))
    return stage


@contextlib.contextmanager
def _occupied(node: Node, port: int) -> collections.abc.Iterator[None]:
  """Let something else on a node listen on a port."""
  listen = f"TCP-LISTEN:{port},reuseaddr,fork"
  process = subprocess.Popen(
    node.command("socat", listen, "SYSTEM:exit"), stdin=subprocess.DEVNULL
  )
  try:
    connect = f"exec 3<>/dev/tcp/{node_address(node.number)}/{port}"
    lifetime.wait_until(
      lambda: node.run("bash", "-c", connect, check=False).returncode == 0,
      f"something listens on port {port}",
    )
    yield
  finally:
    process.terminate()
    process.wait()


# On one node


def user_and_administrator(stage: Stage) -> None:
  vm = stage.define("orders")
  stage.look("defined", vm, ADMIN_DOWN)
  stage.start(vm)
  stage.look("start", vm, RUNNING)
  vm.power_off()
  stage.look("the user's poweroff", vm, USER_DOWN)
  stage.start(vm)
  stage.look("start after that", vm, RUNNING)
  vm.power_off()
  stage.look("the user's poweroff again", vm, USER_DOWN)
  vm.shutdown()
  stage.look_all("shutdown after that", vm, ADMIN_DOWN)
  vm.shutdown()
  stage.look("shutdown once more", vm, ADMIN_DOWN)
  stage.start(vm)
  vm.power_off()
  stage.look("start and the user's poweroff", vm, USER_DOWN)
  vm.remove()
  left = ", ".join(vm.leftovers()) or "nothing left"
  stage.note("remove", "nothing left", left)


def shutdowns(stage: Stage) -> None:
  vm = stage.define("shutdowns")
  stage.start(vm)
  vm.user(Command.OBEY_BUTTON)
  vm.shutdown()
  stage.look_all("shutdown, which the guest obeys", vm, ADMIN_DOWN)
  stage.start(vm)
  vm.user(Command.IGNORE_BUTTON)
  vm.shutdown(timeout=1)
  stage.look_all("shutdown, which the guest ignores", vm, ADMIN_DOWN)
  stage.start(vm)
  vm.shutdown(timeout=0)
  stage.look_all("shutdown that does not wait for the guest", vm, ADMIN_DOWN)
  stage.start(vm)
  vm.power_off()
  stage.look("start and the user's poweroff", vm, USER_DOWN)


def reboots(stage: Stage) -> None:
  vm = stage.define("reboots")
  stage.start(vm)
  for kind in ("soft", "hard", "full"):
    vm.reboot(kind, timeout=0)
    stage.side.attend(vm)
    stage.look(f"{kind} reboot", vm, RUNNING)
  vm.power_off()
  stage.look("the user's poweroff after that", vm, USER_DOWN)
  stage.attempt(
    "soft reboot of an instance whose user turned it off",
    lambda: vm.reboot("soft", timeout=0),
    "refused",
  )
  stage.look("the same", vm, USER_DOWN)
  for kind in ("hard", "full"):
    vm.reboot(kind, timeout=0)
    stage.side.attend(vm)
    stage.look(f"{kind} reboot after that", vm, RUNNING)
    vm.power_off()
    stage.look("the user's poweroff after that", vm, USER_DOWN)


def ends_of_qemu(stage: Stage) -> None:
  vm = stage.define("killed")
  ways = {
    "QEMU is sent SIGTERM": lambda: vm.kill("TERM"),
    "QEMU is sent SIGKILL": lambda: vm.kill("KILL"),
    "quit on QEMU's monitor": lambda: vm.monitor("quit"),
  }
  for after, end in ways.items():
    stage.start(vm)
    end()
    vm.wait_gone()
    stage.look_all(after, vm, ERROR_DOWN)
  vm.shutdown()
  stage.look("shutdown after that", vm, ADMIN_DOWN)


def ends_of_guest(stage: Stage) -> None:
  vm = stage.define("guest")
  stage.start(vm)
  vm.user(Command.RESET)
  stage.look("the guest reboots", vm, RUNNING)
  vm.power_off()
  stage.look("the user's poweroff after that", vm, USER_DOWN)
  stage.start(vm)
  vm.user(Command.IGNORE_BUTTON)
  vm.monitor("system_powerdown")
  vm.power_off()
  stage.look("powerdown on QEMU's monitor, then poweroff", vm, ERROR_DOWN)

  vm = stage.define("guest-exit", _NO_REBOOT, options=_PVPANIC)
  for after, command in (
    ("the guest reboots, which is to end it", Command.RESET),
    ("the guest panics", Command.PANIC),
  ):
    stage.start(vm)
    vm.user(command)
    vm.wait_gone()
    stage.look(after, vm, ERROR_DOWN)


def off_for_instance(stage: Stage) -> None:
  vm = stage.define("off", "user_shutdown=False")
  stage.start(vm)
  vm.power_off()
  stage.look("the user's poweroff", vm, ERROR_DOWN)
  stage.start(vm)
  stage.look("start after that", vm, RUNNING)
  vm.shutdown(timeout=0)
  stage.look("shutdown", vm, ADMIN_DOWN)
  vm.modify("user_shutdown=True")
  stage.start(vm)
  vm.power_off()
  stage.look("the user's poweroff after user_shutdown=True", vm, USER_DOWN)


# On one node, and nothing else at the same time


def watcher(stage: Stage) -> None:
  vms = {
    name: stage.define(f"watcher-{name}")
    for name in ("running", "user", "user2", "admin", "terminated", "killed")
  }
  stage.together(*(lambda vm=vm: stage.start(vm) for vm in vms.values()))
  stage.together(
    vms["user"].power_off,
    vms["user2"].power_off,
    lambda: vms["admin"].shutdown(timeout=0),
    lambda: vms["terminated"].kill("TERM"),
    lambda: vms["killed"].kill("KILL"),
  )
  expected = {
    "running": ("a running instance", RUNNING),
    "user": ("the user's poweroff", USER_DOWN_NOTED),
    "admin": ("shutdown", ADMIN_DOWN),
    "terminated": ("QEMU is sent SIGTERM", RUNNING),
    "killed": ("QEMU is sent SIGKILL", RUNNING),
  }
  for round_ in ("the watcher", "the watcher twice"):
    stage.cluster.watch()
    for name, (before, state) in expected.items():
      stage.look(f"{before}, then {round_}", vms[name], state)
  stage.start(vms["user"])
  stage.look("start after that", vms["user"], RUNNING)
  vms["user2"].shutdown()
  stage.look(
    "the user's poweroff, the watcher, then shutdown", vms["user2"], ADMIN_DOWN
  )
  stage.together(*(vm.remove for vm in vms.values()))


def daemon(stage: Stage) -> None:
  node = stage.cluster.master
  without = stage.define("daemon-without", "user_shutdown=False")
  first = stage.define("daemon-first")
  second = stage.define("daemon-second")
  node.daemon_util("stop")
  without.start()
  stage.look_daemon(
    "start of an instance without user_shutdown", node, expected=False
  )
  first.start()
  stage.look_daemon("start of one with user_shutdown", node, expected=True)
  sides.kill_daemon(node)
  stage.attempt(
    "the daemon is killed, then start of another", second.start, "done"
  )
  stage.look_daemon("the same", node, expected=True)
  if not sides.daemon_runs(node):
    stage.side.mend(node)
  first.power_off()
  stage.look("the user's poweroff of the first", first, USER_DOWN)
  stage.together(without.remove, first.remove, second.remove)


def off_for_cluster(stage: Stage) -> None:
  node = stage.cluster.master
  vm = stage.define("cluster")
  stage.cluster.gnt("cluster", "modify", "--user-shutdown=no")
  stage.look_daemon("cluster --user-shutdown=no", node, expected=False)
  vm.start()
  stage.look("start after that", vm, RUNNING)
  vm.power_off()
  stage.look("the user's poweroff after that", vm, ERROR_DOWN)
  vm.start()
  stage.cluster.gnt("cluster", "modify", "--user-shutdown=yes")
  stage.look_daemon("cluster --user-shutdown=yes", node, expected=True)
  stage.side.attend(vm)
  vm.power_off()
  stage.look("the user's poweroff after that", vm, USER_DOWN)
  vm.remove()


# On two nodes


def migration(stage: Stage) -> None:
  one, two = stage.cluster.nodes
  vm = stage.define("migration", template=_SHARED)
  stage.start(vm)
  vm.migrate(two)
  stage.side.attend(vm)
  stage.look_all("migration", vm, RUNNING)
  vm.power_off()
  stage.look_all("the user's poweroff after that", vm, USER_DOWN, two)
  stage.start(vm)
  for node in (one, two, one):
    vm.migrate(node)
  stage.side.attend(vm)
  stage.look_all("migration there, back and there", vm, RUNNING)
  vm.power_off()
  stage.look_all("the user's poweroff after that", vm, USER_DOWN, one)
  vm.shutdown()
  stage.look_all("shutdown after that", vm, ADMIN_DOWN)
  stage.check_ends(vm, one, _MIGRATED, _MIGRATED, _BY_USER)
  stage.check_ends(vm, two, _BY_USER, _MIGRATED, _MIGRATED)
  if stage.side.tells_ends:
    _migration_without_journal(stage)
    _migration_without_daemon(stage)


def _migration_without_journal(stage: Stage) -> None:
  """The daemon follows the instance by its monitor."""
  one, two = stage.cluster.nodes
  vm = stage.define("monitored", template=_SHARED)
  with contextlib.ExitStack() as obstacles:
    for node in (one, two):
      obstacle = vm.journal_commands(node)
      obstacle.mkdir()
      obstacles.callback(obstacle.rmdir)
    stage.start(vm)
    lifetime.wait_until(
      lambda: f"{vm.name}: attached to QEMU" in sides.daemon_log(one),
      f"the daemon listens to {vm.name}",
    )
    vm.migrate(two)
    vm.power_off()
    stage.check_ends(vm, one, _MIGRATED)
    stage.check_ends(vm, two, _BY_USER)
    vm.remove()


def _migration_without_daemon(stage: Stage) -> None:
  """What happens meanwhile the next daemon tells."""
  one, two = stage.cluster.nodes
  vm = stage.define("unheard", template=_SHARED)
  stage.start(vm)
  sides.kill_daemon(one)
  vm.migrate(two)
  stage.check_ends(vm, one)
  one.daemon_util("start")
  stage.check_ends(vm, one, _MIGRATED)
  vm.remove()
  stage.check_ends(vm, two, "administrator (host-signal)")


def failover(stage: Stage) -> None:
  one, two = stage.cluster.nodes
  vm = stage.define("failover", template=_SHARED)
  stage.start(vm)
  vm.failover(two)
  stage.side.attend(vm)
  stage.look_all("failover", vm, RUNNING)
  vm.power_off()
  stage.look_all("the user's poweroff after that", vm, USER_DOWN, two)
  vm.failover(one)
  stage.look_all("failover after that", vm, RUNNING)
  stage.side.attend(vm)
  vm.power_off()
  stage.look("the user's poweroff after that", vm, USER_DOWN)


def failed_migration(stage: Stage) -> None:
  one, two = stage.cluster.nodes
  vm = stage.define("failed", template=_SHARED)
  stage.start(vm)
  with _occupied(two, MIGRATION_PORT):
    stage.attempt(
      "migration to a node that cannot take it",
      lambda: vm.migrate(two),
      "refused",
    )
  stage.look_all("the same", vm, RUNNING)
  vm.power_off()
  stage.look_all("the user's poweroff after that", vm, USER_DOWN, one)
  stage.check_ends(vm, one, _BY_USER)


def maintenance(stage: Stage) -> None:
  """A node that counts as offline, but is not, stops what it runs.

  Its instances may be started elsewhere, on the same disks.

  """
  two = stage.cluster.nodes[1]
  vms = [
    stage.define("offline1", node=two),
    stage.define("offline2", "user_shutdown=False", node=two),
    stage.define("offline3", node=two),
  ]
  for vm in vms:
    stage.start(vm)
  stage.cluster.gnt("cluster", "modify", "--maintain-node-health=yes")
  stage.cluster.gnt("node", "modify", "--offline=yes", "--force", two.name)
  # Where there is no DRBD it fails at that, when all else is done.
  stage.cluster.watch(two, check=False)
  running = [vm for vm in vms if vm.process(two) is not None]
  after = "the node is taken offline, then the watcher there"
  stage.note(after, "0 of 3 run", f"{len(running)} of 3 run")
  marked = any(vm.shutdown_files() for vm in vms)
  words = {False: "no shutdown file", True: "a shutdown file"}
  stage.note(after, words[False], words[marked])
  failed = "StopInstance" in two.path(_WATCHER_LOG).read_text()
  words = {False: "no error of the hypervisor", True: "one of the hypervisor"}
  stage.note(f"{after}: its log", words[False], words[failed])
  stage.cluster.gnt("node", "modify", "--offline=no", "--force", two.name)
  stage.cluster.gnt("cluster", "modify", "--maintain-node-health=no")
  for vm in running:
    vm.kill("KILL")
  states = {str(vm.state()) for vm in vms}
  after = "what runs there is killed, and the node is taken back"
  stage.note(after, str(ERROR_DOWN), ", ".join(sorted(states)))
  stage.start(vms[0])
  vms[0].power_off()
  stage.look("start and the user's poweroff", vms[0], USER_DOWN)


def perform(
  scenarios: collections.abc.Iterable[Scenario],
  side: sides.Side,
  shown: collections.abc.Iterable[pathlib.Path],
) -> dict[Scenario, Stage]:
  """Play scenarios on a cluster of one node, then of two.

  @param side: what the nodes have
  @param shown: directories of this machine that the nodes see as they are
  @return: what there was to see

  """
  wanted = list(scenarios)
  stages: dict[Scenario, Stage] = {}
  cluster = Cluster.start(f"{side.name}-{os.getpid()}", shown, side.prepare)
  try:
    for group in (ALONE, ONE_NODE, TWO_NODES):
      chosen = [scenario for scenario in group if scenario in wanted]
      if chosen and group is TWO_NODES:
        cluster.add_node()
      # Two migrations to a node at the same time would need two ports
      at_once = side.at_once if group is ONE_NODE else 1
      with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        performing = [
          pool.submit(scenario.perform, cluster, side) for scenario in chosen
        ]
      stages.update(
        (scenario, future.result())
        for scenario, future in zip(chosen, performing)
      )
  finally:
    cluster.stop()
  return stages


def perform_in_background(
  scenarios: collections.abc.Iterable[Scenario],
  side: sides.Side,
  shown: collections.abc.Iterable[pathlib.Path],
) -> concurrent.futures.Future[dict[Scenario, Stage]]:
  """Play scenarios in a thread of its own, which nobody has to wait for.

  When this process ends that thread does, and with it the cluster.

  """
  future: concurrent.futures.Future[dict[Scenario, Stage]] = (
    concurrent.futures.Future()
  )

  def play() -> None:
    try:
      future.set_result(perform(scenarios, side, shown))
    except BaseException as err:  # noqa: BLE001
      future.set_exception(err)

  threading.Thread(target=play, daemon=True).start()
  return future


DAEMON = Scenario("the daemon", daemon)
USER_AND_ADMINISTRATOR = Scenario(
  "a user's poweroff and the administrator", user_and_administrator
)
ENDS_OF_QEMU = Scenario("other ends of QEMU", ends_of_qemu)

ALONE = (
  Scenario("the watcher", watcher),
  DAEMON,
  Scenario("user shutdown is off for the cluster", off_for_cluster),
)

ONE_NODE = (
  USER_AND_ADMINISTRATOR,
  Scenario("shutdowns by the administrator", shutdowns),
  Scenario("reboots by the administrator", reboots),
  ENDS_OF_QEMU,
  Scenario("other ends of the guest", ends_of_guest),
  Scenario("user shutdown is off for the instance", off_for_instance),
)

TWO_NODES = (
  Scenario("migration", migration),
  Scenario("failover", failover),
  Scenario("a migration that fails", failed_migration),
  Scenario("node maintenance", maintenance),
)

ALL = (*ALONE, *ONE_NODE, *TWO_NODES)
