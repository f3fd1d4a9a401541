"""What tests of the read side share: a cache on real tiers and a fake store, put together in one line."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from forebay.cache.block_cache import BlockCache
from forebay.cache.options import CacheOptions
from forebay.cache.pins import Pins
from forebay.cache.tier_set import TierSet
from forebay.tiers.local import TierOptions
from forebay.tiers.understore import UnderStore

MIB = 1024 * 1024


def tier_options(name: str, folder: Path, capacity_bytes: int) -> TierOptions:
    return TierOptions(name=name, folder=folder, capacity_bytes=capacity_bytes, free_space_ratio=0.0)


@contextlib.asynccontextmanager
async def cache_on(
    folder: Path,
    store: UnderStore,
    *,
    ram_bytes: int = 0,
    ssd_bytes: tuple[int, ...] = (256 * MIB,),
    eviction: str = "s3fifo",
    options: CacheOptions | None = None,
    validated: bool = True,
) -> AsyncIterator[BlockCache]:
    """A running cache with tiers below `folder`; afterwards nothing of it is left running, and the tiers add up
    (unless somebody else writes to their files: `validated`)."""
    pins = Pins.open(folder / "pins")
    tiers = TierSet.open(
        tier_options("ram", folder / "ram", ram_bytes) if ram_bytes else None,
        [tier_options("ssd", folder / f"ssd{i}", size) for i, size in enumerate(ssd_bytes)],
        eviction=eviction,
        pinned=pins.is_pinned,
    )
    async with BlockCache(tiers, {store.id: store}, options=options, pins=pins) as cache:
        yield cache
        for tier in (tiers.ram, *tiers.ssd):
            if validated and tier is not None and cache.fills.in_flight == 0 and tier.in_service:
                tier.validate()
    stats = cache.stats()
    assert stats.fills_in_flight == 0
    assert stats.inflight_bytes == 0
    assert stats.pending_promotion_bytes == 0


async def settled(cache: BlockCache) -> None:
    """Until nothing is under way any more."""
    async with asyncio.timeout(180):
        # The cache has no event for "idle", and needs none.
        while cache.fills.in_flight or cache.stats().pending_promotion_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
