# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The KVM daemon as Ganeti's own Makefile makes a program of it.

Only devel/graft has a use for it.
"""

from ganeti.kvmd.main import main


def Main() -> int:  # noqa: N802
  """Runs the daemon.

  @return: the exit status

  """
  return main()
