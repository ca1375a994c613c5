# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""The least that a listener in Python does; what the daemon is compared to.

It attaches to the monitors that exist when it starts, answers nothing but the
greeting, looks for words instead of parsing, and knows no errors.

"""

import os
import select
import socket
import sys


def main(directory: str) -> None:
  """Watches the monitors in a directory for a user's poweroff."""
  epoll = select.epoll()
  monitors = {}
  for name in os.listdir(directory):
    if name.endswith(".kvmd"):
      sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
      sock.setblocking(False)
      sock.connect(os.path.join(directory, name))
      epoll.register(sock.fileno(), select.EPOLLIN)
      monitors[sock.fileno()] = (sock, os.path.join(directory, name[:-5]))
  while True:
    for fd, _ in epoll.poll():
      sock, path = monitors[fd]
      data = sock.recv(4096)
      if b'"QMP"' in data:
        sock.send(b'{"execute": "qmp_capabilities"}\n')
      if b'"SHUTDOWN"' in data and b'"guest-shutdown"' in data:
        os.close(os.open(path + ".shutdown", os.O_WRONLY | os.O_CREAT, 0o600))
      if not data:
        del monitors[fd]
        sock.close()


main(sys.argv[1])
