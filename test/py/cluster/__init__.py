# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""A real Ganeti cluster in namespaces on this machine.

  - L{node}: namespaces that look like machines
  - L{cluster}: Ganeti on them
  - L{instance}: an instance, its administrator and its user
  - L{sides}: whose daemon and hypervisor side the nodes have
  - L{scenarios}: what happens to instances, and what Ganeti should say of it

C{python3 -m cluster} is devel/cluster.

"""
