# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""By which rule the daemon judges, as it says in the control directory.

The hypervisor has to judge by the same when no daemon runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ganeti.kvmd.node import own_files
from ganeti.kvmd.node.ctrldir import NEW_RULE, RULE

if TYPE_CHECKING:
  from typing import Optional

  from ganeti.kvmd.node.ctrldir import ControlDirectory

#: Bytes; no rule's name is as long.
_MAX_RULE = 64


def read(directory: ControlDirectory) -> Optional[str]:
  """Returns the rule that a daemon has said it judges by.

  @return: None if none has, or it was somebody else

  """
  try:
    text = own_files.read(directory.descriptor, RULE, _MAX_RULE)
  except (own_files.UnusableError, OSError):
    return None
  return text.decode("ascii", "replace").removesuffix("\n")


def write(directory: ControlDirectory, rule: Optional[str]) -> None:
  """Says which rule the daemon judges by, for as long as none says another.

  @param rule: None if nothing is to be said of it
  @raise OSError: if that cannot be written or removed

  """
  if rule is None:
    own_files.remove(directory.descriptor, NEW_RULE)
    own_files.remove(directory.descriptor, RULE)
  elif read(directory) != rule:
    text = rule.encode("ascii") + b"\n"
    own_files.replace(directory.descriptor, RULE, NEW_RULE, text)
