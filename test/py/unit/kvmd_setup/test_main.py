# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of the program ganeti-kvmd-setup, on a Ganeti of a few files.

With a real one, and with dpkg, they are in test/py/setup.
"""

from __future__ import annotations

import re

import pytest
from ganeti import kvmd
from ganeti.tools.kvmd_setup import main, node, system

OURS = "is ours now"
THEIRS = "is Ganeti's own now"


@pytest.fixture(autouse=True)
def cluster(monkeypatch) -> None:
  """The cluster wants the daemon."""
  monkeypatch.setattr(main, "_cluster", lambda: main._ON)


@pytest.fixture
def say(capsys):
  """Runs the program, and returns what it said, with its exit status."""

  def run(ganeti, *words: str) -> tuple[int, str]:
    status = ganeti.run(*words)
    said = capsys.readouterr()
    assert all(
      line.startswith("ganeti-kvmd-setup: ") for line in said.err.splitlines()
    )
    return status, said.out + said.err

  return run


class TestUsage:
  """The command line."""

  @pytest.mark.parametrize(
    "words",
    [
      (),
      ("start",),
      ("enable", "--daemon"),
      ("disable", "--daemon-only"),
      ("status", "--restart"),
    ],
  )
  def test_wrong(self, ganeti, capsys, words) -> None:
    with pytest.raises(SystemExit) as caught:
      ganeti.run(*words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ganeti-kvmd-setup")
    assert not (ganeti.root / "calls").exists()

  def test_version(self, ganeti, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
      ganeti.run("-V")
    assert caught.value.code == 0
    assert capsys.readouterr().out == (
      f"ganeti-kvmd-setup version {kvmd.VERSION}\n"
    )

  @pytest.mark.parametrize("command", ["enable", "disable"])
  def test_is_for_root(self, ganeti, say, command: str) -> None:
    before = ganeti.picture()
    ganeti.user = 1000
    status, said = say(ganeti, command)
    assert status == 1
    assert "must be run by root; 'ganeti-kvmd-setup status' is" in said
    assert ganeti.picture() == before

  def test_status_is_for_everybody(self, ganeti, say) -> None:
    ganeti.user = 1000
    _, said = say(ganeti, "status")
    assert said.count("only root can tell") == 2
    assert not (ganeti.root / "lock").exists()

  def test_what_the_kernel_refuses(self, ganeti, say, monkeypatch) -> None:
    monkeypatch.setattr(system, "_LOCK", str(ganeti.root / "no" / "lock"))
    status, said = say(ganeti, "enable")
    assert status == 1
    assert said == (
      f"ganeti-kvmd-setup: {ganeti.root}/no/lock: No such file or directory\n"
    )


class TestSwitch:
  """There and back."""

  def test_all(self, ganeti, say) -> None:
    before = ganeti.picture()
    status, said = say(ganeti, "enable")
    assert status == 0
    places = [
      ganeti.daemon,
      ganeti.root / "man/man8/ganeti-kvmd.8",
      ganeti.hypervisor / "__init__.py",
    ]
    for place in places:
      assert f"{place} {OURS}" in said
      assert place.is_symlink()
    assert places[1].read_text() == "ours\n"
    after = ganeti.picture()
    assert "enabled already" in say(ganeti, "enable")[1]
    assert ganeti.picture() == after

    status, said = say(ganeti, "disable")
    assert status == 0
    assert said.count(THEIRS) == 3
    assert ganeti.picture() == before
    assert "disabled already" in say(ganeti, "disable")[1]
    assert not (ganeti.root / "lock").exists()

  def test_daemon_only(self, ganeti, say) -> None:
    (ganeti.package / "kvmd").rmdir()
    status, said = say(ganeti, "enable")
    assert status == 1
    assert "our modules are not in Ganeti's package" in said
    status, said = say(ganeti, "enable", "--daemon-only")
    assert status == 0
    assert said.count(OURS) == 2
    assert not (ganeti.hypervisor / "__init__.py").is_symlink()

  @pytest.mark.parametrize(
    ("names", "count"),
    [
      ([], 0),
      (["ganeti-kvmd.8"], 1),
      (["ganeti-kvmd.8.gz"], 1),
      (["ganeti-kvmd.8", "ganeti-kvmd.8.gz"], 2),
    ],
  )
  def test_manual_pages(self, ganeti, say, names, count: int) -> None:
    (ganeti.root / "man/man8/ganeti-kvmd.8").unlink()
    for name in names:
      (ganeti.root / "man/man8" / name).write_text("Ganeti's own\n")
    assert say(ganeti, "enable")[1].count("/man/") == count
    found = {path.name for path in (ganeti.root / "man/man8").iterdir()}
    assert found - {f"{name}.sha256" for name in found} >= {
      re.sub(r"(.8(.gz)?)$", r".stock\1", name) for name in names
    }
    assert say(ganeti, "disable")[1].count("/man/") == count

  @pytest.mark.parametrize(
    "name", ["ours/ganeti-kvmd", "ours/hv_kvm/__init__.py"]
  )
  def test_without_a_file_of_ours(self, ganeti, say, name: str) -> None:
    (ganeti.root / name).unlink()
    before = ganeti.picture()
    status, said = say(ganeti, "enable")
    assert status == 1
    assert f"{ganeti.root}/{name} is missing; install ganeti-kvmd again" in said
    assert ganeti.picture() == before

  def test_without_our_mixin(self, ganeti, say) -> None:
    (ganeti.hypervisor / "user_shutdown.py").unlink()
    status, said = say(ganeti, "enable")
    assert status == 1
    assert "user_shutdown.py is missing" in said
    assert say(ganeti, "enable", "--daemon-only")[0] == 0

  def test_without_ganeti(self, ganeti, say) -> None:
    (ganeti.package / "_constants.py").unlink()
    assert "there is no Ganeti in" in say(ganeti, "enable")[1]
    assert "no Ganeti in" in say(ganeti, "status")[1]

  @pytest.mark.parametrize(
    ("name", "text", "words"),
    [
      ("ours/ganeti-kvmd", "#!/bin/sh\nexit 3\n", "failed with status 3"),
      ("ours/ganeti-kvmd", "#!/bin/sh\necho 0\n", "--version' says '0'"),
      (
        "share/ganeti/hypervisor/hv_kvm/user_shutdown.py",
        "raise OSError(7)\n",
        "OSError: 7",
      ),
    ],
  )
  def test_ours_does_not_work(self, ganeti, say, name, text, words) -> None:
    ganeti.write(name, text)
    before = ganeti.picture()
    status, said = say(ganeti, "enable")
    assert status == 1
    assert words in said
    assert said.endswith("; everything is as it was before\n")
    assert OURS not in said
    assert ganeti.picture() == before

  def test_ours_does_not_work_any_more(self, ganeti, say) -> None:
    say(ganeti, "enable")
    ganeti.write("ours/ganeti-kvmd", "#!/bin/sh\nexit 3\n")
    status, said = say(ganeti, "enable")
    assert status == 1
    assert "'ganeti-kvmd-setup disable' brings Ganeti's own back" in said
    assert ganeti.daemon.is_symlink()


class TestDaemons:
  """What runs while it is switched."""

  def test_the_kvm_daemon_is_restarted(self, ganeti, say) -> None:
    ganeti.util("start", node.KVMD)
    stock = ganeti.process()
    assert "ganeti-kvmd was restarted" in say(ganeti, "enable")[1]
    ours = ganeti.process()
    assert ours != stock
    assert not node.is_stock_daemon(ours)
    assert "was restarted" not in say(ganeti, "enable")[1]
    assert ganeti.process() == ours
    assert "ganeti-kvmd was restarted" in say(ganeti, "enable", "--restart")[1]
    assert ganeti.process() != ours
    assert "ganeti-kvmd was restarted" in say(ganeti, "disable")[1]
    assert node.is_stock_daemon(ganeti.process())

  def test_the_node_daemon_is_if_it_is_asked_for(self, ganeti, say) -> None:
    ganeti.util("start", node.NODED)
    process = ganeti.process(node.NODED)
    said = say(ganeti, "enable")[1]
    assert "ganeti-noded was restarted" not in said
    assert ganeti.process(node.NODED) == process
    for command in ("enable", "disable"):
      said = say(ganeti, command, "--restart")[1]
      assert "ganeti-noded was restarted" in said
      assert ganeti.process(node.NODED) != process
      process = ganeti.process(node.NODED)

  def test_none_is_started(self, ganeti, say) -> None:
    for command in ("enable", "disable"):
      say(ganeti, command, "--restart")
    assert "start" not in (ganeti.root / "calls").read_text().split()

  def test_ours_does_not_start(self, ganeti, say) -> None:
    """Then Ganeti's own runs again."""
    ganeti.util("start", node.KVMD)
    text = ganeti.tool.read_text()
    ganeti.tool.write_text(
      text.replace("  start)", "  start) test -L sbin/$2 && exit 4")
    )
    status, said = say(ganeti, "enable")
    assert status == 1
    assert "start ganeti-kvmd' failed with status 4" in said
    assert "everything is as it was before" in said
    assert node.is_stock_daemon(ganeti.process())

  def test_not_everything_can_be_undone(self, ganeti, say, monkeypatch) -> None:
    monkeypatch.setattr(node, "_PATIENCE", 0.1)
    ganeti.util("start", node.KVMD)
    text = ganeti.tool.read_text()
    ganeti.tool.write_text(text.replace("  start)", "  start) exit 4"))
    status, said = say(ganeti, "enable")
    assert status == 1
    assert "not everything could be undone: " in said
    assert "see 'ganeti-kvmd-setup status'" in said
    assert not ganeti.daemon.is_symlink()


class TestStatus:
  """What is active, and what is left to do."""

  def test_before_and_after(self, ganeti, say) -> None:
    status, said = say(ganeti, "status")
    assert status == 1
    assert said == (
      f"ganeti-kvmd {kvmd.VERSION}, Ganeti 3.0.2 in {ganeti.root}/share\n"
      f"daemon:     Ganeti's own ({ganeti.daemon})\n"
      f"hypervisor: Ganeti's own ({ganeti.hypervisor}/__init__.py)\n"
      f"manual:     Ganeti's own ({ganeti.root}/man/man8/ganeti-kvmd.8)\n"
      "ganeti-kvmd: does not run\n"
      "ganeti-noded: does not run\n"
      "cluster:    user shutdown is on\n"
    )
    say(ganeti, "enable")
    ganeti.util("start", node.KVMD)
    status, said = say(ganeti, "status")
    assert status == 0
    assert said.count(" ours (") == 3
    assert f"ganeti-kvmd: process {ganeti.process()}\n" in said

  def test_unknown_version(self, ganeti, say) -> None:
    ganeti.say("3.2.0")
    assert "/share, which is not supported\n" in say(ganeti, "status")[1]

  def test_the_daemon_does_not_run(self, ganeti, say, monkeypatch) -> None:
    advice = f"the daemon does not run; start it with '{ganeti.tool} start"
    _, said = say(ganeti, "enable")
    assert advice in said
    status, said = say(ganeti, "status")
    assert status == 1
    assert f"to do:      {advice}" in said
    monkeypatch.setattr(main, "_cluster", lambda: "user shutdown is off")
    status, said = say(ganeti, "status")
    assert status == 0
    assert "to do:" not in said

  def test_the_daemon_runs_as_before(self, ganeti, say) -> None:
    say(ganeti, "enable")
    ganeti.util("start", node.KVMD)
    ganeti.daemon.unlink()
    ganeti.daemon.with_name("ganeti-kvmd.stock").rename(ganeti.daemon)
    ganeti.daemon.with_name("ganeti-kvmd.stock.sha256").unlink()
    status, said = say(ganeti, "status")
    assert status == 1
    assert (
      "to do:      the daemon still runs as before; 'ganeti-kvmd-setup disable'"
      " restarts it\n" in said
    )

  def test_the_node_daemon_is_older(self, ganeti, say) -> None:
    ganeti.util("start", node.NODED)
    _, said = say(ganeti, "enable")
    words = "the node daemon uses the hypervisor code from before"
    assert words in said
    assert words in say(ganeti, "status")[1]
    assert words not in say(ganeti, "enable", "--restart")[1]

  def test_half_way(self, ganeti, say) -> None:
    say(ganeti, "enable")
    ganeti.daemon.unlink()
    ganeti.daemon.write_text("Ganeti's own, installed again\n")
    status, said = say(ganeti, "status")
    assert status == 1
    assert "daemon:     half-way between Ganeti's own and ours" in said
    assert "run 'ganeti-kvmd-setup enable' or" in said

  def test_trouble(self, ganeti, say) -> None:
    (ganeti.hypervisor / "stock.py").touch()
    status, said = say(ganeti, "status")
    assert status == 1
    assert "hypervisor: trouble, see below" in said
    assert f"to do:      {ganeti.hypervisor}/stock.py is in the way" in said
    assert "run 'ganeti-kvmd-setup enable' or" not in said

  def test_another_ganeti_is_active(self, ganeti, say) -> None:
    versions = ganeti.root / "versions"
    versions.mkdir()
    (versions / "3.1").mkdir()
    (versions / "default").symlink_to("3.1")
    advice = f"the active Ganeti is that in {versions}/3.1: build ganeti-kvmd"
    assert advice in say(ganeti, "status")[1]
    (versions / "default").unlink()
    (versions / "default").symlink_to(ganeti.root / "share")
    assert advice not in say(ganeti, "status")[1]

  def test_without_its_tool(self, ganeti, say) -> None:
    """Ours can be taken away also when Ganeti is half gone."""
    say(ganeti, "enable")
    ganeti.tool.unlink()
    status, said = say(ganeti, "status")
    assert "ganeti-kvmd:" not in said
    status, said = say(ganeti, "disable")
    assert status == 0
    assert said.count(THEIRS) == 3


class TestCluster:
  """Whether the cluster has the feature on, as far as that is known."""

  @pytest.fixture
  def ask(self, monkeypatch):
    """Asks, where the daemon's own module does something."""
    asked = {}
    monkeypatch.undo()

    class Ssconf:
      def reason_not_to_run(self):
        if isinstance(asked["answer"], Exception):
          raise asked["answer"]
        return asked["answer"]

    monkeypatch.setattr("ganeti.kvmd.node.ssconf", Ssconf(), raising=False)

    def ask(answer):
      asked["answer"] = answer
      return main._cluster()

    return ask

  @pytest.mark.parametrize(
    ("answer", "said"),
    [
      (None, "user shutdown is on"),
      ("user shutdown is off", "user shutdown is off"),
      (FileNotFoundError(), "this node is in none"),
      (RuntimeError("a virtual cluster"), "unknown without Ganeti"),
      (ImportError("broken"), "unknown without Ganeti"),
    ],
  )
  def test_says(self, ask, answer, said: str) -> None:
    assert ask(answer) == said
