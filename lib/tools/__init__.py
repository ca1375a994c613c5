# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The package ganeti.tools: what is beside this file, then Ganeti's own.

As with the package ganeti, it is of use where ours is not in Ganeti's own tree.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
