"""What can be seen of the write side: sums for status and metrics, and where one file is durable."""

import asyncio
import logging
from dataclasses import dataclass

from ...errors import TierError
from ...tiers.durable import DurableTier, Room
from .plans import UploadCounts

logger = logging.getLogger(__name__)

ROOM_S = 10.0


@dataclass(slots=True)
class Waits:
    """Back-pressure: how often and how long writers waited for room, and how many of them got ENOSPC in the end."""

    count: int = 0
    seconds: float = 0.0
    refused: int = 0
    now: int = 0


@dataclass(slots=True)
class RoomWatch:
    """How much room the tier has, asked now and then, because asking Ceph is a round trip."""

    tier: DurableTier
    room: Room | None = None

    async def run(self) -> None:
        """Look until cancelled. A tier that does not answer has no known room; whoever writes is told why."""
        while True:
            try:
                self.room = await asyncio.to_thread(self.tier.room)
            except TierError as error:
                if self.room is not None:
                    logger.warning("room is not known: %s", error)
                self.room = None
            await asyncio.sleep(ROOM_S)


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """What `forebay status` and the metrics show. Rates are for the one who asks twice.

    `oldest_age_s` is 0 when nothing is dirty; `running` counts uploads, deletions and moves under way, `uploading` the uploads
    alone. `failures` are the reasons why something does not get through now, `failed` how often work failed, by kind. The room
    is that of the whole file system or pool, None while it is not known.
    `tier_trouble` is why writers are refused, and since when, until one succeeds. Where records are shared, what is dirty is that of all
    writers; `writeback_by` names who brings it into the bucket ("" for this process), and `stale_s` is for how long the records
    have not answered.
    """

    tier: str
    records: str
    writeback_by: str
    stale_s: float
    dirty_files: int
    dirty_bytes: int
    dirty_limit_bytes: int
    buffered_bytes: int
    held_bytes: int
    oldest_age_s: float
    doomed: int
    running: int
    uploading: int
    uploading_bytes: int
    open_files: int
    failures: tuple[str, ...]
    failed: dict[str, int]
    paused: str
    counts: UploadCounts
    deleted: int
    spared: int
    evicted_bytes: int
    waits: Waits
    tier_total_bytes: int | None
    tier_free_bytes: int | None
    tier_trouble: str
    tier_trouble_s: float


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where one file is durable. `state` is buffered, durable, uploading or clean; `key` is where it is or will be."""

    path: bytes
    state: str
    size: int
    dirty_since_ns: int
    stored_bytes: int
    stored_in: str
    key: bytes
    etag: str
    sent_bytes: int
    failure: str
