"""What a Forebay process has in hand: one source, the cache in front of it, and perhaps a mount.

The calls of the control socket and the metrics look at it; `process.py` builds it up and takes it down.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, fields
from typing import Any

from .. import config
from ..cache.block_cache import BlockCache
from ..cache.options import CacheOptions
from ..cache.pins import Pins
from ..cache.tier_set import TierSet
from ..client.registry import Entry
from ..fuse_mount.session import Mount
from ..tiers.local import TierOptions
from ..tiers.stores import StoreCounters
from ..tiers.understore import UnderStore
from .control import ControlServer
from .jobs import Jobs
from .places import Places
from .sources import Source, is_dataset
from .versions import Versions
from .write_part import WritePart


class Service:
    """See the module. `entry`, `server` and `mount` are set by the process while it comes up."""

    def __init__(
        self,
        source: Source,
        versions: Versions,
        places: Places,
        cache: BlockCache,
        pins: Pins,
        settings: config.Settings,
    ) -> None:
        self.source = source
        self.versions = versions
        self.places = places
        self.cache = cache
        self.pins = pins
        self.settings = settings
        self.jobs = Jobs()
        self.started_s = time.monotonic()
        self.entry: Entry | None = None
        self.server: ControlServer | None = None
        self.mount: Mount | None = None
        self.writing: WritePart | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        source: Source,
        places: Places,
        ram: TierOptions | None,
        ssd: list[TierOptions],
        settings: config.Settings,
        *,
        owner: str,
    ) -> "AsyncIterator[Service]":
        """Lock and recover the tiers, load the pins, start the cache. `owner` is who we are, for leases. Raises TierInUse, TierError or TierFailed."""
        pins: Pins | None = None

        def pinned(digest: bytes) -> bool:
            # The pins lie under the lock of the tiers and can only be read after it is ours; until then all is held.
            return pins is None or pins.is_pinned(digest)

        tiers = await asyncio.to_thread(
            TierSet.open, ram, ssd, eviction=settings.eviction, ttl_s=settings.eviction_ttl, pinned=pinned
        )
        try:
            pins = await asyncio.to_thread(Pins.open, places.pins)
        except BaseException:
            tiers.close()
            raise
        options = CacheOptions(timeout_s=settings.io_timeout, prefetch_requests=settings.max_connections)
        versions = Versions(source, settings, owner)
        async with BlockCache(tiers, versions.store_of, options=options, pins=pins) as cache:
            try:
                yield cls(source, versions, places, cache, pins, settings)
            finally:
                await versions.close()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer or a job."""
        return self.jobs.running > 0 or (self.server is not None and self.server.busy > 0)

    def describe(self) -> dict[str, Any]:
        """Who we are, for whoever started us."""
        assert self.entry is not None
        return {
            "pid": self.entry.pid,
            "source": self.entry.source,
            "mountpoint": self.entry.mountpoint,
            "socket": str(self.entry.socket),
            "log_file": self.entry.log_file,
            "metrics_port": self.entry.metrics_port,
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        """What a user should know of the mount."""
        if self.mount is None:
            return []
        notes = list(self.mount.status().notes)
        if self.writing is None and not self.settings.read_only and not is_dataset(self.source.name.text):
            notes.append("the mount is read-only: only buckets (s3://) can be written to")
        if self.writing is not None:
            notes += self.writing.notes()
        return notes

    def status(self) -> dict[str, Any]:
        """Everything that `forebay status` shows; numbers as they are, for `--json` and metrics too."""
        stats = self.cache.stats()
        mounted = asdict(self.mount.status()) if self.mount is not None else None
        return {
            **self.describe(),
            "role": self.entry.role if self.entry is not None else None,
            "up_s": time.monotonic() - self.started_s,
            "mount": mounted,
            "cache": {**asdict(stats), "asked_bytes": stats.asked_bytes},
            "stores": [_describe_store(store) for store in self.source.stores.values()],
            "view": self.source.describe(),
            "write": self.writing.describe() if self.writing is not None else None,
            "jobs": [job.describe() for job in self.jobs.all()],
        }


def _describe_store(store: UnderStore) -> dict[str, Any]:
    # Counting is no duty of an under store, but all of ours do.
    counters: StoreCounters = getattr(store, "counters", None) or StoreCounters()
    # Not `asdict`: it cannot copy a Counter.
    numbers = {item.name: getattr(counters, item.name) for item in fields(counters)}
    down_for_s = time.time() - counters.down_since_s if counters.down_since_s is not None else None
    return {
        "id": store.id,
        **numbers,
        "requests": dict(counters.requests),
        "errors": dict(counters.errors),
        "skipped": dict(counters.skipped),
        "down_for_s": down_for_s,
    }
