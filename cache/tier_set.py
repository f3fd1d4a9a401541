"""The local tiers of one cache, as one: which tier a version's bytes go to, and how they move between tiers.

    new bytes    to RAM while it has room, then to the SSD tier of the version; RAM changes by merit only
    promotion    SSD -> RAM, of what is asked a second time within a while (`promotion.py`); the SSD keeps its copy
    demotion     RAM -> SSD, of what RAM evicts and the SSD tier does not have

So a first pass over more data than RAM holds is written once, not once per tier, and a scan cannot empty RAM.

Among several SSD folders a version has its place by rendezvous hashing over those in service: when one fails its
share spreads over the others and the rest stays where it is, and when it is back it is found as it was left.

Demotion happens in the thread whose write needed the room, before the eviction: that is its backpressure, and no
queue is needed. Methods may be called from any thread and block on the disk only. Trouble of a tier is returned or
counted, never raised: a reader has other ways to get its bytes.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from ..errors import TierError, TierFull
from ..tiers.local import LocalTier, TierOptions
from ..tiers.understore import Buffer
from ..tiers.version import ObjectVersion, align_to_chunks
from .eviction import DEFAULT_TTL_S, make_policy
from .stats import Counters

log = logging.getLogger(__name__)

TierName = Literal["ram", "ssd"]

# RAM counts as full from here on: below what it evicts down to when it is full, so that it does not seem to have
# room after each eviction.
ROOM_SHARE = 0.9
MULTIPLIER = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class CachedParts:
    """How much of one version is here. `bytes` counts what is in several tiers once; blocks are whole ones."""

    size_bytes: int
    cached_bytes: int
    ram_bytes: int
    ssd_bytes: int
    ram_blocks: int
    ssd_blocks: int

    @property
    def fraction(self) -> float:
        return self.cached_bytes / self.size_bytes if self.size_bytes else 1.0


class TierSet:
    """RAM and SSD tiers; the set owns them. `open` opens them; put together from open ones, nothing is demoted unless
    the RAM tier was opened with `on_evict` leading to `evicted`."""

    def __init__(self, ram: LocalTier | None, ssd: Sequence[LocalTier], counters: Counters | None = None) -> None:
        self.ram = ram
        self.ssd = tuple(ssd)
        self.counters = counters or Counters()
        # A folder's share of the versions stays the same when others are added or reordered: its name is hashed.
        self._salts = [
            int.from_bytes(blake2b(str(tier.options.folder).encode("utf-8", "surrogateescape"), digest_size=8).digest())
            for tier in self.ssd
        ]
        self._single = self.ssd[0] if len(self.ssd) == 1 else None
        self._ram_limit_bytes = ROOM_SHARE * ram.options.capacity_bytes if ram is not None else 0.0

    @classmethod
    def open(
        cls,
        ram: TierOptions | None,
        ssd: Sequence[TierOptions],
        *,
        eviction: str = "s3fifo",
        ttl_s: float = DEFAULT_TTL_S,
        pinned: Callable[[bytes], bool],
    ) -> "TierSet":
        """Open all tiers, each with a policy of its own, or none. Raises what `LocalTier.open` raises."""
        counters = Counters()
        opened: list[LocalTier] = []
        tiers: list[TierSet] = []

        def demote(version: ObjectVersion, offset: int, data: Buffer) -> None:
            # While the RAM tier opens (and evicts, if it was made smaller) there is no set yet: nothing is demoted.
            if tiers:
                tiers[0].evicted(version, offset, data)

        try:
            for options in ssd:
                policy = make_policy(eviction, options.capacity_bytes, ttl_s=ttl_s)
                opened.append(LocalTier.open(options, policy, pinned=pinned))
            ram_tier = None
            if ram is not None:
                policy = make_policy(eviction, ram.capacity_bytes, ttl_s=ttl_s)
                ram_tier = LocalTier.open(ram, policy, pinned=pinned, on_evict=demote)
        except BaseException:
            for tier in opened:
                tier.close()
            raise
        tiers.append(cls(ram_tier, opened, counters))
        return tiers[0]

    def ssd_of(self, version: ObjectVersion) -> LocalTier | None:
        """The SSD tier in which the version has its place now."""
        if self._single is not None or not self.ssd:
            return self._single
        seed = int.from_bytes(version.digest[8:], "little")
        best: LocalTier | None = None
        best_score = -1
        for tier, salt in zip(self.ssd, self._salts, strict=True):
            score = ((seed ^ salt) * MULTIPLIER & MASK) >> 11
            if score > best_score and tier.in_service:
                best, best_score = tier, score
        return best

    def read(self, version: ObjectVersion, offset: int, size: int) -> Buffer | None:
        """The bytes, from the first tier that has all of them; None if none has."""
        for tier in (self.ram, self.ssd_of(version)):
            if tier is not None and (data := tier.read(version, offset, size)) is not None:
                return data
        return None

    def missing(self, version: ObjectVersion, offset: int, size: int) -> list[tuple[int, int]]:
        """The chunk-aligned ranges that are in no tier; ascending. The whole object, if it is small."""
        gaps = [(0, version.size) if version.is_small else align_to_chunks(offset, size, version.size)]
        for tier in (self.ram, self.ssd_of(version)):
            if tier is not None and gaps:
                gaps = [gap for gap_offset, gap_size in gaps for gap in tier.missing(version, gap_offset, gap_size)]
        return gaps

    def write(self, version: ObjectVersion, offset: int, data: Buffer, to: TierName | None = None) -> TierError | None:
        """Put the bytes of a chunk-aligned range (or a whole small object) into a tier: `to`, or the right one.

        Without `to` the next tier is tried when one is full or fails. None when a tier took them, else why none did.
        """
        refusal: TierError = TierFull("there is no tier for the bytes", remedy="configure a cache folder")
        for tier in self._targets(version, to):
            try:
                tier.write(version, offset, data)
            except TierFull as error:
                refusal = error  # no trouble: the policy or the pins want it so
            except TierError as error:
                self.counters.errors[error.kind] += 1
                refusal = error
            else:
                return None
        return refusal

    def evicted(self, version: ObjectVersion, offset: int, data: Buffer) -> None:
        """RAM is about to evict these bytes: demote them, unless the SSD tier has them. The `on_evict` of the RAM tier."""
        ssd = self.ssd_of(version)
        size = len(data)
        if ssd is None or not ssd.missing(version, offset, size):
            return
        try:
            ssd.write(version, offset, data)
        except TierError as error:
            self.counters.errors[error.kind] += 1
            self.counters.demotions_dropped += 1
        else:
            self.counters.demoted_bytes += size

    def cached(self, version: ObjectVersion) -> CachedParts:
        """What is here of a version. Walks its blocks: for people and receipts, not for the read path."""
        ssd = self.ssd_of(version)
        ram_bytes = self.ram.cached_bytes(version) if self.ram else 0
        ssd_bytes = ssd.cached_bytes(version) if ssd else 0
        held = version.size - sum(size for _, size in self.missing(version, 0, version.size)) if version.size else 0
        return CachedParts(
            size_bytes=version.size,
            cached_bytes=held,
            ram_bytes=ram_bytes,
            ssd_bytes=ssd_bytes,
            ram_blocks=len(self.ram.present_blocks(version)) if self.ram and ram_bytes else 0,
            ssd_blocks=len(ssd.present_blocks(version)) if ssd and ssd_bytes else 0,
        )

    def drop(self, version: ObjectVersion) -> int:
        """Take a version out of all tiers, also of SSD folders where it had its place earlier; the bytes dropped."""
        return sum(tier.drop(version) for tier in (self.ram, *self.ssd) if tier is not None)

    def close(self) -> None:
        for tier in (self.ram, *self.ssd):
            if tier is not None:
                tier.close()

    def ram_has_room(self) -> bool:
        """Whether RAM takes more without evicting."""
        ram = self.ram
        return ram is not None and ram.in_service and ram.used_bytes < self._ram_limit_bytes

    def _targets(self, version: ObjectVersion, to: TierName | None) -> list[LocalTier]:
        ssd = self.ssd_of(version)
        if to is not None:
            chosen = self.ram if to == "ram" else ssd
            return [chosen] if chosen is not None else []
        order = [self.ram, ssd] if self.ram_has_room() or ssd is None else [ssd]
        return [tier for tier in order if tier is not None]
