"""Whose turn it is to read a local disk.

A lane thread reads the disk itself: an answer by way of the event loop costs three wake-ups more and twice the CPU. But a
slow or dying disk holds up who reads it, so one thread is always kept free of that, for names and attributes. The reads
that it gets meanwhile are postponed: the next thread that has read takes them, before it asks the kernel for more. What
nobody took within `PATIENCE_S` goes to the event loop, where a read may wait for something else than this disk.

The rules by which none is forgotten: who takes up a postponed read has taken a turn before, and who gave a turn back looks
for postponed reads afterwards, as does who postponed one. All of it are single steps on deques, so no lock is needed.
"""

import time
from collections import deque
from typing import NamedTuple

PATIENCE_S = 0.05


class Postponed(NamedTuple):
    """A read for which there was no turn."""

    ino: int
    offset: int
    size: int


class Turns:
    """`count` turns, and the reads that wait for one, by the number of their request. Any thread."""

    def __init__(self, count: int) -> None:
        self._free: deque[None] = deque([None] * count)
        self._postponed: deque[tuple[float, int, Postponed]] = deque()

    def take(self) -> bool:
        """Whether there was a turn. Then `give_back` it, and look for what is `next`."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def give_back(self) -> None:
        self._free.append(None)

    def postpone(self, unique: int, read: Postponed) -> None:
        """Let a read wait for a turn. Look for what is `next` afterwards."""
        self._postponed.append((time.monotonic(), unique, read))

    def next(self) -> tuple[int, Postponed] | None:
        """The read that waits longest, and a turn for it; None if there is no turn or nothing waits."""
        while self._postponed and self.take():
            try:
                _, unique, read = self._postponed.popleft()
            except IndexError:
                self.give_back()
            else:
                return unique, read
        return None

    def overdue(self) -> list[tuple[int, Postponed]]:
        """The reads that have waited longer than PATIENCE_S; they wait for no turn any more."""
        since_s = time.monotonic() - PATIENCE_S
        found = []
        while self._postponed and self._postponed[0][0] <= since_s:
            try:
                found.append(self._postponed.popleft()[1:])
            except IndexError:
                break
        return found

    def clear(self) -> None:
        """Nobody waits for an answer any more."""
        self._postponed.clear()

    def __len__(self) -> int:
        """How many reads wait for a turn."""
        return len(self._postponed)
