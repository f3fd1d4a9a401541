"""Letting go: taking versions out of the tiers before the eviction policy would."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ..block_cache import BlockCache
from .target import Wanted

BATCH_OBJECTS = 256


@dataclass
class Freed:
    """What `free` did. Pinned versions stay, unless it was told otherwise."""

    asked_objects: int = 0
    freed_objects: int = 0
    freed_bytes: int = 0
    pinned_objects: int = 0


async def free(cache: BlockCache, wanted: AsyncIterator[Wanted], *, also_pinned: bool = False) -> Freed:
    """Drop the versions from all tiers. `also_pinned` drops them even where a lease holds them; the lease stays."""
    freed = Freed()

    def drop(batch: list[Wanted]) -> None:
        for item in batch:
            freed.asked_objects += 1
            if not also_pinned and cache.pins.is_pinned(item.version.digest):
                freed.pinned_objects += 1
                continue
            dropped = cache.tiers.drop(item.version)
            freed.freed_objects += dropped > 0
            freed.freed_bytes += dropped

    batch: list[Wanted] = []
    async for item in wanted:
        batch.append(item)
        if len(batch) >= BATCH_OBJECTS:
            await asyncio.to_thread(drop, batch)
            batch = []
    await asyncio.to_thread(drop, batch)
    return freed
