"""The scheduling priority of the process behind a mount: a program that uses a file waits for it, so it goes first.

On a node whose processors are all busy with data loaders, each look-up and each read waits until this process gets its turn
among them: they would wait for each other. It needs little time (20 µs for a read), so going first takes nothing from anybody.

Only root may (CAP_SYS_NICE), and within a container its share of the processors counts first. Whoever starts the mount with a
priority of their own (`nice -n 1 forebay mount ...`) keeps it.
"""

import contextlib
import os

# Above what people give to programs, below what the system keeps for itself.
FIRST = -15
NORMAL = 0


def go_first() -> None:
    """Let this thread, and those that it starts from now on, go first, if nobody chose a priority and it is permitted."""
    if _priority() == NORMAL:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, FIRST)


def step_back() -> None:
    """What takes its time, in a process of its own, does so at the priority of everything else."""
    if _priority() == FIRST:
        os.setpriority(os.PRIO_PROCESS, 0, NORMAL)


def _priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)
