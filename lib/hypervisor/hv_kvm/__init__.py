# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""KVM hypervisor: Ganeti's own, with another user-shutdown side.

Ganeti's module is C{stock} in this package. Whatever else it defines is found
here as well, as if it were still in this place.
"""

from typing import Any

from ganeti.hypervisor.hv_kvm import stock, user_shutdown


class KVMHypervisor(user_shutdown.UserShutdown, stock.KVMHypervisor):
  """KVM hypervisor interface."""


def __getattr__(name: str) -> Any:
  return getattr(stock, name)
