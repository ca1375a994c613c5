# Copyright (C) 2026 the ganeti-kvmd developers
# SPDX-License-Identifier: BSD-2-Clause

"""Random faults, and an oracle that knows the right verdicts all the same.

A schedule of steps is made of a seed: guests live and die, the daemon is
killed, its directory vanishes, its disk fills up. Each verdict is compared
with what was done to the guest.

- L{steps}: what there is to do, as data, and schedules of it
- L{chance}: makes schedules
- L{world}: plays a schedule: guests live and die
- L{births}: how guests are started
- L{troubles}: what befalls the daemon and the node meanwhile
- L{place}: the control directory, and what becomes of it
- L{fake_qemu}, L{real_qemu}: the guests
- L{flood}: what a hostile one writes
- L{daemons}: the daemon, killed and started over and over
- L{disk}: a disk that can be filled up
- L{node}: what Ganeti's hypervisor does and sees
- L{stranger}: another user of the node
- L{oracle}: what the right verdicts are, and what else may be forgiven
- L{checks}: compares all that can be seen with that
- L{tally}: what was played, in numbers
- L{suite}: plays a schedule on its own, and makes a failed one short

In C{saved} are schedules that failed once, and such as chance does not make.

C{devel/faults} runs it for as long as one likes.

"""
