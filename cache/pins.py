"""Pins: holds on cached data. A version is pinned while any lease that has not ended includes it.

Each pin has an id, an owner, a purpose and an end, and survives restarts and kill -9 in the cache folder (`pin_set.py`
has the files). Two jobs that pin the same data hold two pins; the data stays until both have ended or were removed.

When a lease ends is decided by a clock that cannot be set. At load, wall-clock time says how much is left, but never
more than the whole lease, so a clock that went backwards does not hold data for ever; after that only seconds that
really pass count (time in suspend included), so a clock that is corrected while we run ends no lease early. What
cannot be helped: a wall clock that is ahead at start ends leases too soon. It costs a fetch, not data.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .pin_set import PinLabel, PinSet

log = logging.getLogger(__name__)


def boot_time_s() -> float:
    """Seconds since boot, time in suspend included; nobody can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Pins:
    """All pins of one cache. `is_pinned` is called by evicting tiers, from any thread; the rest take a lock briefly."""

    def __init__(
        self,
        folder: Path | None,
        *,
        wall_clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = boot_time_s,
    ) -> None:
        """An empty set of pins; with `folder`, those made later are kept there. Use `open` to load what is there."""
        self._folder = folder
        self._wall_clock = wall_clock
        self._steady_clock = steady_clock
        self._lock = threading.Lock()
        self._held: dict[str, tuple[PinSet, float]] = {}
        # What is_pinned walks: replaced as a whole, so that it needs no lock.
        self._live: tuple[tuple[PinSet, float], ...] = ()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        wall_clock: Callable[[], float] = time.time,
        steady_clock: Callable[[], float] = boot_time_s,
    ) -> "Pins":
        """Load the pins kept in `folder` (made if needed). One that cannot be read is reported and set aside."""
        folder.mkdir(parents=True, exist_ok=True)
        pins = cls(folder, wall_clock=wall_clock, steady_clock=steady_clock)
        for path in sorted(folder.glob("*.json")):
            try:
                pins._hold(PinSet.load(folder, path.stem))
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("pin %s cannot be read and holds nothing: %s", path, error)
        for path in folder.glob("*.keys"):
            if path.stem not in pins._held and not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)
        pins.sweep()
        return pins

    @staticmethod
    def any_live(folder: Path) -> bool:
        """Whether a lease kept in `folder` has not ended, by the wall clock; of a cache that is not ours, so nothing is changed."""
        for path in folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                if PinSet.load(folder, path.stem).label.expires_at > time.time():
                    return True
        return False

    def is_pinned(self, digest: bytes) -> bool:
        """Whether a live lease holds the version with that digest."""
        live = self._live
        if not live:
            return False
        now_s = self._steady_clock()
        return any(now_s < ends_s and pin_set.contains(digest) for pin_set, ends_s in live)

    def count(self, digest: bytes) -> int:
        """How many live leases hold it."""
        now_s = self._steady_clock()
        return sum(now_s < ends_s and pin_set.contains(digest) for pin_set, ends_s in self._live)

    def add(self, *, owner: str, lease_s: float, purpose: str = "", kept: bool = True) -> PinSet:
        """A new pin, still empty: `add` versions to it, then `seal` it. With `kept` false it dies with this process."""
        now = self._wall_clock()
        label = PinLabel(secrets.token_hex(6), owner, purpose, now, now + lease_s, lease_s)
        pin_set = PinSet.create(self._folder if kept else None, label)
        with self._lock:
            self._hold(pin_set)
        return pin_set

    def renew(self, pin_id: str, lease_s: float) -> bool:
        """Let the lease end `lease_s` from now; False if there is no such pin (any more)."""
        with self._lock:
            held = self._held.get(pin_id)
            if held is None:
                return False
            held[0].relabel(expires_at=self._wall_clock() + lease_s, lease_s=lease_s)
            self._hold(held[0])
            return True

    def remove(self, pin_id: str) -> bool:
        """End a lease now; False if there is no such pin. What it held may be evicted, unless another pin holds it."""
        with self._lock:
            held = self._held.pop(pin_id, None)
            if held is None:
                return False
            self._live = tuple(self._held.values())
            held[0].delete()
            return True

    def list(self) -> list[PinLabel]:
        """The live pins, oldest first."""
        self.sweep()
        return sorted((pin_set.label for pin_set, _ in self._live), key=lambda label: label.created_at)

    def sweep(self) -> int:
        """Remove the pins whose lease has ended; how many they were."""
        now_s = self._steady_clock()
        ended = [pin_id for pin_id, (_, ends_s) in list(self._held.items()) if ends_s <= now_s]
        return sum(self.remove(pin_id) for pin_id in ended)

    @property
    def pinned_bytes(self) -> int:
        """Sum of the sizes of all live pins; a version held twice counts twice."""
        return sum(pin_set.label.size_bytes for pin_set, _ in self._live)

    def _hold(self, pin_set: PinSet) -> None:
        label = pin_set.label
        left_s = min(label.expires_at - self._wall_clock(), label.lease_s)
        self._held[label.id] = (pin_set, self._steady_clock() + left_s)
        self._live = tuple(self._held.values())
