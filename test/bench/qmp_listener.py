# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""What one would write instead of a daemon: a listener on qemu.qmp.

It looks for new monitors every second and knows only a user's poweroff.

"""

import asyncio
import os
import sys

from qemu.qmp import QMPClient, QMPError


async def watch(path: str) -> None:
  """Watches one monitor until its instance shuts down."""
  client = QMPClient()
  with client.listener("SHUTDOWN") as events:
    await client.connect(path)
    event = await events.get()
    if event["data"].get("reason") == "guest-shutdown":
      open(path[: -len(".kvmd")] + ".shutdown", "w").close()
    await client.disconnect()


async def main(directory: str) -> None:
  """Watches all monitors in a directory, those to come included."""
  tasks: dict = {}
  print("watching", directory, file=sys.stderr, flush=True)
  while True:
    for name in [x for x in tasks if tasks[x].done()]:
      error = tasks.pop(name).exception()
      if error and not isinstance(error, (QMPError, EOFError, OSError)):
        raise error
    for name in os.listdir(directory):
      if name.endswith(".kvmd") and name not in tasks:
        path = os.path.join(directory, name)
        tasks[name] = asyncio.ensure_future(watch(path))
    await asyncio.sleep(1)


asyncio.run(main(sys.argv[1]))
