"""The plan: what a prefetch would cost, before it starts."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import ForebayError
from ...tiers.version import ObjectVersion
from ..block_cache import BlockCache
from ..budget import ByteBudget
from ..tier_set import TierName
from .receipt import TierPart
from .target import Pause, Target, Wanted

SAMPLE_OBJECTS = 256
SAMPLE_S = 2.0
SAMPLE_BUDGET_SHARE = 0.5


@dataclass
class Plan:
    """What is asked, what of it is here already, what is left to fetch, whether it fits, and how long it takes.

    `room_bytes` is what the tier can hold beside what others have pinned; it fits if all that is asked is within that.
    `rate_bytes_s` was measured on a sample of what is missing, and is 0 if nothing is (or none of it could be fetched:
    `rate_problem` says why). `estimated_s` follows from it; None if there is no rate.
    """

    to: str
    asked_objects: int = 0
    asked_bytes: int = 0
    ram: TierPart = field(default_factory=TierPart)
    ssd: TierPart = field(default_factory=TierPart)
    fetch_objects: int = 0
    fetch_bytes: int = 0
    room_bytes: int = 0
    pinned_by_others_bytes: int = 0
    fits: bool = True
    rate_bytes_s: float = 0.0
    estimated_s: float | None = 0.0
    rate_problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def make_plan(cache: BlockCache, wanted: AsyncIterator[Wanted], *, to: TierName | None = None) -> Plan:
    """Look at all that is wanted, and fetch a sample of what is missing, for up to two seconds, to know the rate.

    Nothing is put into a tier and nothing is pinned. Raises UsageError if there is no such tier.
    """
    target = Target(cache.tiers, to)
    plan = Plan(target.name)
    sample: list[ObjectVersion] = []
    chance = random.Random(0)
    pinned_here_bytes = 0
    pause = Pause()
    async for _, version in wanted:
        plan.asked_objects += 1
        plan.asked_bytes += version.size
        pinned_here_bytes += version.size * cache.pins.count(version.digest)
        gaps = target.gaps(version)
        if not gaps:
            target.attribute(version, plan.ram, plan.ssd)
        else:
            plan.fetch_objects += 1
            plan.fetch_bytes += sum(size for _, size in gaps)
            # Every missing object has the same chance to be in the sample, however many there are.
            if len(sample) < SAMPLE_OBJECTS:
                sample.append(version)
            elif (place := chance.randrange(plan.fetch_objects)) < SAMPLE_OBJECTS:
                sample[place] = version
        await pause.now_and_then()
    plan.pinned_by_others_bytes = max(cache.pins.pinned_bytes - pinned_here_bytes, 0)
    plan.room_bytes = max(await asyncio.to_thread(target.limit_bytes) - plan.pinned_by_others_bytes, 0)
    plan.fits = plan.asked_bytes <= plan.room_bytes
    if sample:
        await _measure_rate(cache, plan, sample)
    return plan


async def _measure_rate(cache: BlockCache, plan: Plan, sample: list[ObjectVersion]) -> None:
    """Fetch the sample as the prefetch would, into nowhere."""
    budget = ByteBudget(int(cache.options.max_inflight_bytes * SAMPLE_BUDGET_SHARE))
    waiting = iter(sample)
    fetched_bytes = 0

    async def fetch_some() -> None:
        nonlocal fetched_bytes
        for version in waiting:
            size = min(version.size, cache.options.request_bytes)
            await budget.take(size)
            try:
                data = await cache.store_of(version).get_range(version, 0, size)
            finally:
                budget.give(size)
            fetched_bytes += len(data)

    started_s = time.monotonic()
    try:
        async with asyncio.timeout(SAMPLE_S), asyncio.TaskGroup() as group:
            for _ in range(min(cache.options.prefetch_requests, len(sample))):
                group.create_task(fetch_some())
    except* TimeoutError:
        pass  # what came in the time is what we wanted to know
    except* ForebayError as errors:
        plan.rate_problem = str(errors.exceptions[0])
    plan.rate_bytes_s = fetched_bytes / max(time.monotonic() - started_s, 1e-6)
    plan.estimated_s = plan.fetch_bytes / plan.rate_bytes_s if plan.rate_bytes_s else None
