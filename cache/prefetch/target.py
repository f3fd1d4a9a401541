"""Where a prefetch brings things, and what counts as being there."""

import asyncio
import time
from typing import NamedTuple

from ...errors import UsageError
from ...tiers.local import LocalTier
from ...tiers.version import ObjectVersion
from ..tier_set import TierName, TierSet
from .receipt import TierPart

# How much is looked at before other tasks of the event loop get their turn.
LOOK_S = 0.005


class Wanted(NamedTuple):
    """One object that is asked for: how people call it, and which version it is."""

    path: str
    version: ObjectVersion


class Target:
    """RAM or SSD. Without a choice it is SSD if there is one, else RAM, and what another tier has counts as well.

    Raises UsageError if there is no such tier.
    """

    def __init__(self, tiers: TierSet, to: TierName | None) -> None:
        self._tiers = tiers
        self.anywhere = to is None
        self.name: TierName = to or ("ssd" if tiers.ssd else "ram")
        if (tiers.ram is None) if self.name == "ram" else (not tiers.ssd):
            raise UsageError(
                f"this cache has no {self.name} tier to prefetch into", remedy="choose the other tier, or configure it"
            )

    def gaps(self, version: ObjectVersion) -> list[tuple[int, int]]:
        """The (offset, size) ranges to bring in for the version to be where it is wanted."""
        if version.size == 0:
            return []
        if self.anywhere:
            return self._tiers.missing(version, 0, version.size)
        tier = self._tiers.ram if self.name == "ram" else self._tiers.ssd_of(version)
        return tier.missing(version, 0, version.size) if tier is not None else [(0, version.size)]

    def limit_bytes(self) -> int:
        """What the tiers in service can hold together. May look at many files of others on their disks."""
        tiers: tuple[LocalTier | None, ...] = (self._tiers.ram,) if self.name == "ram" else self._tiers.ssd
        return sum(tier.limit_bytes() for tier in tiers if tier is not None and tier.in_service)

    def attribute(self, version: ObjectVersion, ram: TierPart, ssd: TierPart) -> None:
        """Add a version without gaps to the tiers that it is in; each byte once."""
        if not self.anywhere:
            ram_bytes, ram_blocks = (version.size, version.block_count) if self.name == "ram" else (0, 0)
        elif self._tiers.ram is None:
            ram_bytes = ram_blocks = 0
        elif version.is_small:
            ram_bytes = 0 if self._tiers.ram.missing(version, 0, version.size) else version.size
            ram_blocks = version.block_count if ram_bytes else 0
        else:
            ram_bytes = self._tiers.ram.cached_bytes(version)
            ram_blocks = len(self._tiers.ram.present_blocks(version)) if ram_bytes else 0
        ram.size_bytes += ram_bytes
        ram.blocks += ram_blocks
        ssd.size_bytes += version.size - ram_bytes
        ssd.blocks += version.block_count - ram_blocks
        # An empty object has no bytes anywhere; it is where it was wanted.
        in_ram = ram_bytes == version.size if version.size else self.name == "ram"
        (ram if in_ram else ssd).objects += 1


class Pause:
    """Lets other tasks of the event loop run, once in `LOOK_S`."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    async def now_and_then(self) -> None:
        if time.monotonic() - self._since_s >= LOOK_S:
            await asyncio.sleep(0)
            self._since_s = time.monotonic()
