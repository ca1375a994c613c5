# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Real guests in real QEMU processes, for the tests and for the demo.

- L{qemu}: a QEMU process, its monitors and its guest's serial line
- L{boot_sector}: a guest that boots in a tenth of a second
- L{linux}: a small Linux
- L{endings}: the ways in which a guest goes down, and the right verdicts
- L{stage}: a control directory, for all of them
- L{lifetime}: processes and directories that go when their owner goes

"""
