"""The writing half of a mount's process: from settings to a write side, and what commands ask of it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import config
from ..cache.block_cache import BlockCache
from ..cache.write.nodes import Kind, Node
from ..cache.write.operations import Attributes
from ..cache.write.options import OnConflict, WriteMode, WriteOptions
from ..cache.write.records import Records, SqliteRecords
from ..cache.write.recovery import Recovered
from ..cache.write.write_side import WriteSide
from ..errors import Incomplete, UsageError
from ..fuse_mount.parts import Kit
from ..fuse_mount.writable import writable_kit
from ..fuse_mount.writable_view import WritableView
from ..fuse_mount.writing import Writing
from ..fuse_mount.written_listing import WrittenListing
from ..tiers.durable import DurableTier, FolderTier, is_rados, open_durable_tier
from ..tiers.understore import Buffer, MultipartStore
from ..tiers.version import ObjectVersion
from .live_source import LiveSource
from .opening import open_source
from .sources import Source

PROGRESS_S = 0.5
# Of `write-cache-size`: down to where uploaded data is given up once it has been passed.
LOW_SHARE = 0.75


def default_write_tier() -> Path:
    return config.default_data_dir() / "write"


def write_options(settings: config.Settings) -> WriteOptions:
    """What the settings mean. Raises ConfigError for bounds that contradict each other."""
    return WriteOptions(
        mode=WriteMode(settings.write_mode),
        on_conflict=OnConflict(settings.on_conflict),
        writeback_delay_s=settings.writeback_delay,
        max_dirty_age_s=settings.max_dirty_age,
        max_dirty_bytes=settings.max_dirty_size,
        dirty_wait_s=settings.dirty_wait,
        recheck_s=4 * settings.io_timeout,
        lease_s=1.5 * settings.io_timeout,
        high_watermark_bytes=settings.write_cache_size,
        low_watermark_bytes=int(settings.write_cache_size * LOW_SHARE),
    )


def open_write_side(source: LiveSource, settings: config.Settings, **more: Any) -> WriteSide:
    """The write side of a bucket, with its tier and records open. Blocks. Raises TierInUse, TierFailed, MetadataUnavailable, UsageError."""
    store = source.store
    if not isinstance(store, MultipartStore):
        raise UsageError(f"{source.name.text} cannot be written to", remedy="only buckets (s3://) can")
    tier, records = _open_places(source, settings)
    uid = os.getuid() if settings.uid is None else settings.uid
    gid = os.getgid() if settings.gid is None else settings.gid
    return WriteSide(
        tier=tier,
        records=records,
        store=store,
        prefix=source.prefix.encode("utf-8", "surrogateescape"),
        options=write_options(settings),
        file_attributes=Attributes(0o666 & ~settings.umask, uid, gid),
        folder_attributes=Attributes(0o777 & ~settings.umask, uid, gid),
        **more,
    )


def is_shared(settings: config.Settings) -> bool:
    """Whether records are where several machines reach them."""
    return settings.meta_url is not None and settings.meta_url.startswith("mongodb")


def _open_places(source: LiveSource, settings: config.Settings) -> tuple[DurableTier, Records]:
    """The tier and the records of a bucket. The records are in MongoDB if there is one, else beside the data, for one process."""
    where = settings.write_tier or str(default_write_tier())
    name = source.name.folder
    if is_shared(settings):
        assert settings.meta_url is not None
        from ..cache.write.records.mongo import MongoRecords  # the driver: only for those who use it

        tier = open_durable_tier(where, name, shared=True)
        try:
            return tier, MongoRecords(settings.meta_url, name)
        except BaseException:
            tier.close()
            raise
    home = (default_write_tier() if is_rados(where) else Path(where)) / name
    tier = open_durable_tier(where, name)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tier, SqliteRecords(home / "records.db")
    except BaseException:
        tier.close()
        raise


def _was_written(source: LiveSource, settings: config.Settings) -> bool:
    if not is_shared(settings):
        return False
    from ..cache.write.records.mongo import MongoRecords

    assert settings.meta_url is not None
    return MongoRecords.exists(settings.meta_url, source.name.folder)


def _require_tier(side: WriteSide) -> None:
    """A follower must reach the data that it is to show. Raises UsageError."""
    mark = side.state.tier_mark
    if mark is not None and mark.identity != side.tier.identity:
        raise UsageError(
            f"what is written to the bucket is kept in {mark.label} on {mark.host} until it is uploaded, not in {side.tier.label}",
            remedy="give that --write-tier, or mount without --meta-url to see only what is in the bucket",
        )


class WritePart:
    """Made by `open`, before the mount; closed after the unmount."""

    def __init__(self, side: WriteSide, view: WritableView, writing: Writing, recovered: Recovered) -> None:
        self.side = side
        self.view = view
        self.recovered = recovered
        self.kit: Kit = writable_kit(writing)

    @classmethod
    async def open(
        cls, source: Source, cache: BlockCache, settings: config.Settings, *, what: str
    ) -> "WritePart | None":
        """The write part of a mount. What a predecessor left dirty goes on from here.

        A read-only mount has one if it follows what other mounts write: if they ever did, and keep their records where it reaches
        them. None for one that only reads. `what` is what other writers of the bucket are told.
        """
        if not isinstance(source, LiveSource) or not isinstance(source.store, MultipartStore):
            return None
        if settings.read_only and not await asyncio.to_thread(_was_written, source, settings):
            return None

        async def read_base(version: ObjectVersion, offset: int, size: int) -> Buffer:
            return await cache.read(version, offset, size, reader=0)

        late: dict[str, Any] = {}
        side = open_write_side(
            source,
            settings,
            what=what,
            is_follower=settings.read_only,
            read_base=read_base,
            listing=WrittenListing(source.namespace),
            in_use=lambda node_id: late["view"].in_use(node_id),
            keys_read=lambda: late["writing"].keys_read(),
        )
        view = late["view"] = WritableView(source.view, side)
        writing = late["writing"] = Writing(view, side)
        try:
            recovered = await side.start()
            if settings.read_only:
                await asyncio.to_thread(_require_tier, side)
        except BaseException:
            await side.close()
            raise
        return cls(side, view, writing, recovered)

    async def close(self) -> None:
        await self.side.close()

    def notes(self) -> list[str]:
        """What a user should know of where written data is."""
        side = self.side
        if isinstance(side.tier, FolderTier) or side.records.is_shared:
            return []
        return [
            f"written data is safe in {side.tier.label}, but which file it belongs to is noted on this machine only ({side.records.label}): if the "
            "machine is lost, so is what the bucket does not have yet; --meta-url mongodb://... keeps it where every machine finds it"
        ]

    def describe(self) -> dict[str, Any]:
        return asdict(self.side.status())

    def info(self, path: str) -> dict[str, Any] | None:
        """What `forebay info` says of a path that has been written; None if it was not, or is a folder."""
        where = self.side.whereabouts(os.fsencode(path))
        node = self.side.resolve(os.fsencode(path))
        if where is None or not isinstance(node, Node) or node.kind == Kind.DIRECTORY:
            return None
        return {
            "path": path,
            "kind": "written",
            "state": where.state,
            "size_bytes": where.size,
            "mtime_s": node.mtime_ns / 1e9,
            "key": os.fsdecode(where.key),
            "etag": where.etag,
            "stored_bytes": where.stored_bytes,
            "stored_in": where.stored_in,
            "sent_bytes": where.sent_bytes,
            "dirty_for_s": max(time.time() - where.dirty_since_ns / 1e9, 0.0) if where.dirty_since_ns else 0.0,
            "failure": where.failure,
        }

    def pending(self, limit: int) -> dict[str, Any]:
        """Files that are not in the bucket yet, oldest first."""
        with self.side.ledger.locked() as state:
            paths = [
                state.path_of(node)
                for node in (state.by_id[one] for one in list(state.dirty)[:limit])
                if node is not None
            ]
            total = len(state.dirty)
        found = [self.side.whereabouts(path) for path in paths if path]
        files = [
            {
                "path": os.fsdecode(one.path),
                "state": one.state,
                "size_bytes": one.size,
                "stored_bytes": one.stored_bytes,
                "sent_bytes": one.sent_bytes,
                "dirty_for_s": max(time.time() - one.dirty_since_ns / 1e9, 0.0),
                "failure": one.failure,
            }
            for one in found
            if one is not None
        ]
        return {"files": files, "total": total, **self.describe()}

    def flush(self, path: str, timeout_s: float | None) -> AsyncIterator[dict[str, Any]]:
        return flush_lines(self.side, path, timeout_s)


async def flush_lines(side: WriteSide, path: str, timeout_s: float | None) -> AsyncIterator[dict[str, Any]]:
    """What is left, now and then, until nothing at and below `path` is. Raises Incomplete at the time-out."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        step_s = PROGRESS_S if deadline is None else min(PROGRESS_S, max(deadline - time.monotonic(), 0.0))
        try:
            await side.flush(os.fsencode(path) if path else None, timeout_s=step_s)
        except Incomplete:
            if deadline is not None and time.monotonic() >= deadline:
                raise
            yield {"state": "running", **asdict(side.status())}
            continue
        yield {"state": "done", **asdict(side.status())}
        return


async def recover(text: str, settings: config.Settings, timeout_s: float | None) -> AsyncIterator[dict[str, Any]]:
    """Take over the write tier of a source that no mount has, and bring everything in it into the bucket."""
    source = await open_source(text, settings, what="forebay recover")
    try:
        if not isinstance(source, LiveSource):
            raise UsageError(f"{text} is a version of a data set, and those are never written to")
        side = await asyncio.to_thread(open_write_side, source, settings, what="forebay recover")
        try:
            recovered = await side.start()
            missing = [os.fsdecode(path) for path in recovered.missing]
            yield {"state": "recovered", **asdict(recovered), "missing": missing}
            async for line in flush_lines(side, "", timeout_s):
                yield line
        finally:
            await side.close()
    finally:
        await source.close()
