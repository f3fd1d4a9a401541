"""Archive: copy a version's contents into a content-addressed area, so that it stays whole whatever happens to the bucket.

    <prefix>/sha256/<aa>/<sha256>-<size>     where the version records the SHA-256 of the content
    <prefix>/version/<aa>/<digest>           else: 16 bytes that stand for (store, key, etag, version id, size)

So a content is copied once however many versions and paths have it, and an archive that was interrupted goes on where
it was: what lies there with the right size is not copied again. Etags are not used as content hashes: those of
folders and of some servers do not depend on the content, and a false match would be other bytes.

A copy is made on the server's side where source and archive are one service, else streamed through here. It is of exactly
the recorded version (the store refuses otherwise), and is looked at again after it was made: size and etag. Streamed
bytes are hashed, and compared with the recorded SHA-256.

The archive of a version is recorded as a version of its own, with the same paths and labels and the objects of the
archive (`archived_batches`), that nobody sees: the tag `archive-<id of the version>` holds it against gc, and whoever
opens the version gets its entries from there.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from ..errors import Incomplete, ObjectChanged, ObjectNotFound, StoreCorrupt, UsageError
from ..tiers.understore import MultipartStore, ObjectInfo, UnderStore
from ..tiers.version import ObjectVersion
from .entries import Entry, batch_of, entries_of
from .object_stores import ObjectStores
from .task_group import plain_task_group

COPIES_AT_ONCE: Final = 32
WINDOW_ENTRIES: Final = 2048
WHOLE_BYTES: Final = 16 * 1024 * 1024
FAILURES_NAMED: Final = 20


@dataclass(slots=True)
class ArchiveReport:
    """Counts of a run; grows while it goes on. `failures` names the first objects that could not be archived."""

    total: int
    total_bytes: int
    done: int = 0
    done_bytes: int = 0
    copied: int = 0
    copied_bytes: int = 0
    already_there: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)


def archive_key(prefix: str, entry: Entry) -> str:
    """Where the content of an entry lies in an archive (`prefix` is empty or ends in a slash)."""
    if entry.sha256 is not None:
        return f"{prefix}sha256/{entry.sha256[:2]}/{entry.sha256}-{entry.version.size}"
    digest = entry.version.digest.hex()
    return f"{prefix}version/{digest[:2]}/{digest}"


class Archiver:
    """One run of archiving into `target` under `prefix`. Belongs to the event loop that `archived_batches` is given."""

    def __init__(self, stores: ObjectStores, target: UnderStore, prefix: str, report: ArchiveReport) -> None:
        self.report = report
        self.on_progress: Callable[[], None] = lambda: None
        self._stores = stores
        self._target = target
        self._prefix = prefix
        self._free = asyncio.Semaphore(COPIES_AT_ONCE)

    def archived_batches(
        self, batches: Iterable[pa.RecordBatch], loop: asyncio.AbstractEventLoop
    ) -> Iterator[pa.RecordBatch]:
        """The entries with their objects in the archive, each copied there before it comes out. Call it from a thread.

        Raises Incomplete at the end if objects could not be archived (gone or overwritten), and what the stores raise.
        """
        for window in _windows(batches):
            future = asyncio.run_coroutine_threadsafe(self._archive(window), loop)
            try:
                archived = future.result()
            except BaseException:
                future.cancel()
                raise
            self.on_progress()
            yield batch_of(archived)
        if self.report.failed:
            named = "; ".join(self.report.failures)
            raise Incomplete(
                f"{self.report.failed} of {self.report.total} objects are not what the version recorded, so it cannot be"
                f" archived: {named}",
                remedy="see `forebay snapshot verify`; select what is left into a new version and archive that",
            )

    async def _archive(self, entries: Sequence[Entry]) -> list[Entry]:
        """Each entry with its object in the archive; those that failed are left out and counted."""
        wanted: dict[str, Entry] = {archive_key(self._prefix, entry): entry for entry in entries}
        placed: dict[str, ObjectVersion | None] = {}

        async def place(key: str, entry: Entry) -> None:
            async with self._free:
                try:
                    placed[key] = self._target.version(await self._place(key, entry))
                except (ObjectNotFound, ObjectChanged, StoreCorrupt) as error:
                    placed[key] = None
                    if len(self.report.failures) < FAILURES_NAMED:
                        self.report.failures.append(f"{entry.path} ({error.message})")

        async with plain_task_group() as tasks:
            for key, entry in wanted.items():
                tasks.create_task(place(key, entry))
        archived: list[Entry] = []
        for entry in entries:
            version = placed[archive_key(self._prefix, entry)]
            if version is None:
                self.report.failed += 1
            else:
                archived.append(replace(entry, version=version))
                self.report.done += 1
                self.report.done_bytes += version.size
        return archived

    async def _place(self, key: str, entry: Entry) -> ObjectInfo:
        """What lies under `key` of the archive, copied now if it does not lie there yet."""
        present = await self._target.head(key)
        if present is not None and present.size == entry.version.size:
            self.report.already_there += 1
            return present
        made = await self._copy(key, entry)
        seen = await self._target.head(key)
        if seen is None or (seen.size, seen.etag) != (entry.version.size, made.etag):
            raise StoreCorrupt(f"{self._target.id}: the copy {key!r} of {entry.version.key!r} is not what was written")
        self.report.copied += 1
        self.report.copied_bytes += seen.size
        return seen

    async def _copy(self, key: str, entry: Entry) -> ObjectInfo:
        version = entry.version
        if same_service(version.store, self._target.id):
            return await self._target.copy(version, key)
        source = self._stores.get(version.store)
        return await stream_copy(source, version, self._target, key, sha256=entry.sha256)


def same_service(one: str, other: str) -> bool:
    """Whether an object of store `one` can be copied into store `other` by the service itself."""
    if one == other:
        return True
    both_s3 = one.startswith("s3://") and other.startswith("s3://")
    return both_s3 and one.partition("@")[2] == other.partition("@")[2]


async def stream_copy(
    source: UnderStore, version: ObjectVersion, target: UnderStore, key: str, *, sha256: str | None
) -> ObjectInfo:
    """Copy an object between services through this process, a part at a time. Nothing appears under `key` on failure.

    Raises StoreCorrupt when the bytes do not have the SHA-256 that was recorded.
    """
    hasher = hashlib.sha256()

    def check() -> None:
        if sha256 is not None and hasher.hexdigest() != sha256:
            raise StoreCorrupt(
                f"{version.store}: {version.key!r} does not have the SHA-256 that the version records"
                f" ({hasher.hexdigest()}, not {sha256})"
            )

    if version.size <= WHOLE_BYTES:
        data = await source.get_range(version, 0, version.size) if version.size else b""
        hasher.update(data)
        check()
        return await target.put(key, data)
    if not hasattr(target, "create_upload"):
        raise UsageError(
            f"{target.id} takes no object above {WHOLE_BYTES} bytes from another service",
            remedy="archive into an S3 bucket",
        )
    return await _stream_parts(source, version, target, key, hasher.update, check)  # type: ignore[arg-type]


async def _stream_parts(
    source: UnderStore,
    version: ObjectVersion,
    target: MultipartStore,
    key: str,
    seen: Callable[[bytes], None],
    check: Callable[[], None],
) -> ObjectInfo:
    upload_id = await target.create_upload(key)
    part_bytes = max(WHOLE_BYTES, -(-version.size // 10_000))
    try:
        parts = []
        for number, offset in enumerate(range(0, version.size, part_bytes), 1):
            data = await source.get_range(version, offset, min(part_bytes, version.size - offset))
            await asyncio.to_thread(seen, bytes(data))
            parts.append(await target.upload_part(key, upload_id, number, data))
        check()
        return await target.complete_upload(key, upload_id, parts)
    except BaseException:
        await asyncio.shield(_quietly(target.abort_upload(key, upload_id)))
        raise


async def _quietly(call: Awaitable[None]) -> None:
    """Clean up as far as the store lets us; the reason for cleaning up is what gets reported."""
    try:
        await call
    except Exception:  # noqa: S110
        pass


def _windows(batches: Iterable[pa.RecordBatch]) -> Iterator[list[Entry]]:
    window: list[Entry] = []
    for batch in batches:
        window.extend(entries_of(batch))
        while len(window) >= WINDOW_ENTRIES:
            yield window[:WINDOW_ENTRIES]
            window = window[WINDOW_ENTRIES:]
    if window:
        yield window
