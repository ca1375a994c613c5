# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Random faults, and an oracle that knows the right verdicts all the same.

A schedule of steps is made of a seed: guests live and die, the daemon is
killed, its directory vanishes, its disk fills up. Each verdict is compared
with what was done to the guest.

- L{steps}: what there is to do, as data, and schedules of it
- L{world}: plays a schedule
- L{fake_qemu}, L{real_qemu}: the guests
- L{daemons}: the daemon, killed and started over and over
- L{disk}: a disk that can be filled up
- L{node}: what Ganeti's hypervisor does and sees
- L{oracle}: what the right verdicts are, and what else may be forgiven
- L{suite}: many schedules, and making a failed one short

C{devel/faults} runs it for as long as one likes.

"""
