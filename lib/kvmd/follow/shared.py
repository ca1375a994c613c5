# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What all share who follow instances."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  from ganeti.kvmd.core import lifecycle
  from ganeti.kvmd.core.quota import Quota
  from ganeti.kvmd.core.timing import Timing
  from ganeti.kvmd.follow.history import History
  from ganeti.kvmd.follow.verdicts import Verdicts
  from ganeti.kvmd.node.place import Place
  from ganeti.kvmd.node.processes import Processes


class Shared(NamedTuple):
  """The means of all who follow instances.

  @ivar place: where the control directory is
  @ivar verdicts: who delivers verdicts
  @ivar history: who writes down how instances ended
  @ivar processes: where to note which process is which instance's
  @ivar quota: how much is logged of each instance
  @ivar rule: how a shutdown is judged
  @ivar timing: how often what is tried

  """

  place: Place
  verdicts: Verdicts
  history: History
  processes: Processes
  quota: Quota
  rule: lifecycle.Rule
  timing: Timing
