# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Tests of whether the node's cluster wants a daemon, by its ssconf files."""

from __future__ import annotations

import os
import pathlib
import socket
import typing

import pytest
from ganeti import constants, pathutils, vcluster
from ganeti.kvmd.node import ssconf

NODE = "node1.example.com"

#: The files of a cluster that wants a daemon on its node
WANTED = {
  constants.SS_HYPERVISOR_LIST: "xen-pvm\nkvm\n",
  constants.SS_ENABLED_USER_SHUTDOWN: "True\n",
  constants.SS_NODE_VM_CAPABLE: f"node0.example.com=False\n{NODE}=True\n",
}


@pytest.fixture
def asked(
  monkeypatch, scratch: pathlib.Path
) -> typing.Callable[..., typing.Optional[str]]:
  """Asks on a node whose files and names may be others; None is no file."""
  monkeypatch.setattr(pathutils, "DATA_DIR", str(scratch))

  def ask(
    changes: typing.Optional[dict[str, typing.Any]] = None,
    host: str = NODE,
    virtual: typing.Optional[str] = None,
  ) -> typing.Optional[str]:
    for key, value in {**WANTED, **(changes or {})}.items():
      if value is not None:
        content = value if isinstance(value, bytes) else value.encode()
        (scratch / f"ssconf_{key}").write_bytes(content)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(vcluster, "GetVirtualHostname", lambda: virtual)
    return ssconf.reason_not_to_run()

  return ask


def test_it_is_wanted(asked) -> None:
  assert asked() is None


@pytest.mark.parametrize(
  ("hypervisors", "is_wanted"),
  [
    ("kvm", True),
    ("kvm\n", True),
    ("kvm\nxen-pvm\n", True),
    ("", False),
    ("\n", False),
    ("xen-pvm\nxen-hvm\n", False),
    ("kvmx\nxkvm\n", False),
    ("KVM\n", False),
    (b"k\xffvm\nkvm\n", True),
    (b"kvm\xff\n", False),
  ],
)
def test_whether_kvm_is_enabled(asked, hypervisors, is_wanted: bool) -> None:
  reason = asked({constants.SS_HYPERVISOR_LIST: hypervisors})
  assert (reason is None) is is_wanted
  if not is_wanted:
    assert "KVM is not an enabled hypervisor" in reason
    assert "gnt-cluster modify --enabled-hypervisors" in reason


@pytest.mark.parametrize(
  ("said", "is_wanted"),
  [
    ("True", True),
    ("True\n", True),
    ("False\n", False),
    ("", False),
    ("true\n", False),
    ("True\nFalse\n", False),
  ],
)
def test_whether_user_shutdown_is_on(asked, said: str, is_wanted: bool) -> None:
  reason = asked({constants.SS_ENABLED_USER_SHUTDOWN: said})
  assert (reason is None) is is_wanted
  if not is_wanted:
    assert "user shutdown is off in the cluster" in reason
    assert "gnt-cluster modify --user-shutdown=yes" in reason
    assert "-H kvm:user_shutdown=True" in reason


@pytest.mark.parametrize(
  ("line", "is_wanted"),
  [
    (f"{NODE}=True", True),
    (f"{NODE}=False", False),
    (f"{NODE}=", False),
    (NODE, False),
    (f"{NODE}=true", False),
  ],
)
def test_whether_the_node_is_vm_capable(asked, line, is_wanted: bool) -> None:
  others = "node0.example.com=False\nnode2.example.com=True\n"
  reason = asked({constants.SS_NODE_VM_CAPABLE: f"{others}{line}\n"})
  assert (reason is None) is is_wanted
  if not is_wanted:
    assert f"the node {NODE} is not VM-capable" in reason
    assert f"gnt-node modify --vm-capable=yes {NODE}" in reason


@pytest.mark.parametrize(
  ("nodes", "host", "found"),
  [
    (["a.x", "b.x"], "a.x", "a.x"),
    # A host that knows its short name only, or has another domain.
    (["a.x", "b.x"], "b", "b.x"),
    (["a.x", "b.x"], "b.y", "b.x"),
    # One of two with that short name, unless it says which.
    (["a.x", "a.y"], "a", None),
    (["a.x", "a.y"], "a.z", None),
    (["a.x", "a.y"], "a.y", "a.y"),
    (["a", "a.y"], "a", "a"),
    # None of the cluster's nodes, as far as it can be told.
    (["ab.x"], "a", None),
    (["a.x"], "ab", None),
    (["a.x"], "A.x", None),
    ([], "a", None),
  ],
)
def test_which_node_this_is(asked, nodes, host: str, found) -> None:
  """It is named where none of them is VM-capable; an unknown one may run it."""
  lines = "".join(f"{name}=False\n" for name in nodes)
  reason = asked({constants.SS_NODE_VM_CAPABLE: lines}, host)
  if found is None:
    assert reason is None
  else:
    assert f"the node {found} is not VM-capable" in reason


def test_node_of_a_virtual_cluster(asked) -> None:
  lines = "real.example.com=False\nvirtual.example.com=True\n"
  changes = {constants.SS_NODE_VM_CAPABLE: lines}
  assert "real" in asked(changes, "real.example.com")
  assert asked(changes, "real.example.com", "virtual.example.com") is None
  reason = asked(changes, "virtual.example.com", "real.example.com")
  assert "the node real.example.com is not" in reason


def test_what_cannot_be_is_said_in_an_order(asked) -> None:
  """The first that has to be changed comes first."""
  changes = {
    constants.SS_NODE_VM_CAPABLE: f"{NODE}=False\n",
    constants.SS_ENABLED_USER_SHUTDOWN: "False\n",
    constants.SS_HYPERVISOR_LIST: "xen-pvm\n",
  }
  for words, key in (
    ("--enabled-hypervisors", constants.SS_HYPERVISOR_LIST),
    ("--user-shutdown=yes", constants.SS_ENABLED_USER_SHUTDOWN),
    ("--vm-capable=yes", constants.SS_NODE_VM_CAPABLE),
  ):
    assert words in asked(changes)
    del changes[key]
  assert asked(changes) is None


@pytest.mark.parametrize("missing", list(WANTED))
def test_node_of_no_cluster(asked, scratch: pathlib.Path, missing: str) -> None:
  with pytest.raises(FileNotFoundError) as caught:
    asked({missing: None})
  assert caught.value.filename == os.path.join(scratch, f"ssconf_{missing}")


def test_file_that_cannot_be_read(asked, scratch: pathlib.Path) -> None:
  (scratch / f"ssconf_{constants.SS_NODE_VM_CAPABLE}").mkdir()
  with pytest.raises(IsADirectoryError, match=constants.SS_NODE_VM_CAPABLE):
    asked({constants.SS_NODE_VM_CAPABLE: None})
