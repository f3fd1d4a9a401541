"""What the read side counts: counters that only grow, and gauges that come back to zero.

Counters are plain attributes, added to from any thread without a lock. In CPython a thread is only interrupted at
jumps and calls, and `counters.x += n` has neither between its read and its write.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

from ..tiers.local import TierStats

ByKind: TypeAlias = dict[str, int]


class Counters:
    """The counters behind `CacheStats`, which explains them."""

    def __init__(self) -> None:
        self.ram_hits = 0
        self.ssd_hits = 0
        self.memory_hits = 0
        self.tier_hits = 0
        self.misses = 0
        self.ram_bytes = 0
        self.ssd_bytes = 0
        self.memory_bytes = 0
        self.tier_bytes = 0
        self.missed_bytes = 0
        self.fetches = 0
        self.fetched_bytes = 0
        self.readahead_bytes = 0
        self.readahead_wasted_bytes = 0
        self.joined = 0
        self.not_cached_bytes = 0
        self.promoted_bytes = 0
        self.promotions_dropped = 0
        self.demoted_bytes = 0
        self.demotions_dropped = 0
        self.errors: Counter[str] = Counter()


@dataclass(frozen=True)
class CacheStats:
    """The read side at one moment. Hits and misses count reads, bytes are what those reads asked for.

    A *memory* hit is served from a fill that has arrived and is on its way into a tier; a *tier* hit (as against a RAM
    or SSD hit) went through the event loop and found its bytes in either tier or in both. A *miss* had to wait for the
    under store; fills that were under way already are counted as `joined`. `amplification` is fetched / asked bytes.
    `readahead_wasted_bytes` were fetched ahead and not read before their reader went elsewhere. `not_cached_bytes` were
    served, but no tier took them. `errors` counts failed fills and tier writes by the kind of the error; a full tier is none.
    """

    ram_hits: int
    ssd_hits: int
    memory_hits: int
    tier_hits: int
    misses: int
    ram_bytes: int
    ssd_bytes: int
    memory_bytes: int
    tier_bytes: int
    missed_bytes: int
    fetches: int
    fetched_bytes: int
    readahead_bytes: int
    readahead_wasted_bytes: int
    joined: int
    not_cached_bytes: int
    promoted_bytes: int
    promotions_dropped: int
    demoted_bytes: int
    demotions_dropped: int
    # Gauges.
    fills_in_flight: int
    inflight_bytes: int
    readers: int
    pending_promotion_bytes: int
    pins: int
    pinned_bytes: int
    tiers: tuple[TierStats, ...]
    errors: ByKind = field(default_factory=dict)

    @property
    def asked_bytes(self) -> int:
        return self.ram_bytes + self.ssd_bytes + self.memory_bytes + self.tier_bytes + self.missed_bytes

    @property
    def amplification(self) -> float:
        return self.fetched_bytes / self.asked_bytes if self.asked_bytes else 0.0
