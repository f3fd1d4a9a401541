"""How old things are, whatever happens to the wall clock.

Records carry wall-clock times, because they outlive the process; waiting by them would lose a delay when the clock is set forward, and
wait for an hour more when it is set back. So an age counts from when this process first asked for it, on the monotonic clock.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field


def now_s() -> float:
    """Seconds since the boot, with those in which the machine was suspended: for what others do meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Things that went are forgotten when so many more are known than are there.
SLACK = 1000


@dataclass(slots=True)
class Ages:
    """Not thread-safe: of one task, or under its owner's lock."""

    clock: Callable[[], float] = time.monotonic
    _since: dict[Hashable, float] = field(default_factory=dict)

    def age_s(self, what: Hashable, *, before_s: float = 0.0) -> float:
        """Seconds since the first call for `what`, and `before_s` of that call (below zero counts as none)."""
        now = self.clock()
        since = self._since.setdefault(what, now - max(before_s, 0.0))
        return now - since

    def forget(self, count: int, is_there: Callable[[Hashable], bool]) -> None:
        """Forget what is not there any more, once it outweighs the `count` things that are."""
        if len(self._since) > 2 * count + SLACK:
            self._since = {what: since for what, since in self._since.items() if is_there(what)}
