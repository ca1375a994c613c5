# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Whether the node's cluster wants the daemon to run.

Ganeti distributes the facts of a cluster to its nodes as small files, "ssconf".
They are read here without Ganeti's own reader, which would bring 16 MB along.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from ganeti import constants, pathutils, vcluster

if TYPE_CHECKING:
  from collections.abc import Collection
  from typing import Optional

#: How Ganeti writes that something is on.
_ON = "True"


def reason_not_to_run() -> Optional[str]:
  """Tells why the daemon has nothing to do on this node, and what changes it.

  @return: None if it has
  @raise OSError: if the files cannot be read: the node is in no cluster

  """
  if constants.HT_KVM not in _read(constants.SS_HYPERVISOR_LIST).split():
    return (
      "KVM is not an enabled hypervisor of the cluster; it can be enabled with"
      " gnt-cluster modify --enabled-hypervisors"
    )
  if _read(constants.SS_ENABLED_USER_SHUTDOWN).strip() != _ON:
    return (
      "user shutdown is off in the cluster; turn it on with gnt-cluster modify"
      " --user-shutdown=yes, and for instances with -H kvm:user_shutdown=True"
    )
  vm_capable = _vm_capable()
  host = vcluster.GetVirtualHostname() or socket.gethostname()
  node = _find_node(vm_capable, host)
  if node is not None and not vm_capable[node]:
    return (
      f"the node {node} is not VM-capable; that can be changed with gnt-node"
      f" modify --vm-capable=yes {node}"
    )
  return None


def _vm_capable() -> dict[str, bool]:
  """Returns the cluster's nodes and whether they are VM-capable."""
  nodes = {}
  for line in _read(constants.SS_NODE_VM_CAPABLE).splitlines():
    name, _, value = line.partition("=")
    nodes[name] = value == _ON
  return nodes


def _find_node(nodes: Collection[str], host: str) -> Optional[str]:
  """Finds this host among the nodes.

  Nodes have full names; a host often knows its short one only.

  @return: None if it is none of them, or might be several

  """
  if host in nodes:
    return host
  short = host.partition(".")[0]
  found = [name for name in nodes if name.partition(".")[0] == short]
  return found[0] if len(found) == 1 else None


def _read(key: str) -> str:
  path = os.path.join(pathutils.DATA_DIR, constants.SSCONF_FILEPREFIX + key)
  with open(path, encoding="utf-8", errors="replace") as ssconf:
    return ssconf.read()
