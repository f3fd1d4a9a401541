"""The write side of a mount, whole: names, open files, writeback, recovery.

Paths are bytes below the mount, without a leading slash; or a function that gives the path at the moment of the change, with the
ledger's lock held, and raises OSError if the folder is gone: where others change names too, a path grows old while a commit waits. Where no node decides what a path is, the caller says what the
listing of the under store shows there (`shown`): asking it can take a round trip, and is done before. Operations block
until what they changed is durable (a few hundred microseconds on a local disk); they may be called from any thread. Waiting
for the under store happens in coroutines only.

    side = WriteSide(...)
    async with side:
        file = side.create(b"a/b.pt", Attributes(0o644, 0, 0))
        file.write(0, data)
        file.sync()                  # durable: survives kill -9
        await side.flush()           # clean: in the bucket, verified
"""

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import secrets
import time
from collections.abc import Callable
from itertools import islice
from types import TracebackType
from typing import TypeAlias, TypeVar

from ...errors import (
    MetadataTooLarge,
    OpenElsewhere,
    TierError,
)
from ...tiers.durable import DurableTier
from ...tiers.understore import Buffer, MultipartStore
from ..budget import ByteBudget
from .back_pressure import BackPressure
from .base_reads import BaseReads
from .deletions import Deletions
from .flushing import Flushing
from .freshness import Freshness
from .ledger import Ledger, Step
from .nodes import Entry, Kind, Node
from .object_metadata import fits
from .open_files import OpenFile, OpenFiles
from .operations import Attributes, Operations, Shown
from .options import WriteOptions
from .records.store import Records
from .recovery import Recovered, collect_garbage, recover
from .relocation import Relocation
from .retirement import Listing, Retirement
from .sending import ReadBase
from .state import Below, State
from .status import RoomWatch, Waits, Whereabouts, WriteStatus
from .tier_mark import mark_tier
from .uploads import Uploads
from .writeback import Writeback
from .writers import Writers

logger = logging.getLogger(__name__)

# What files and folders of the listing are taken to have, unless the mount says otherwise.
LISTED_FILE = Attributes(0o644, 0, 0)
LISTED_FOLDER = Attributes(0o755, 0, 0)
# How long an open for writing waits for another mount that has the file open for writing, and how often it looks.
OPEN_WAIT_S = 5.0
OPEN_POLL_S = 0.05

T = TypeVar("T")
Place: TypeAlias = bytes | Callable[[], bytes]


class WriteSide:
    def __init__(
        self,
        *,
        tier: DurableTier,
        records: Records,
        store: MultipartStore,
        prefix: bytes = b"",
        options: WriteOptions | None = None,
        file_attributes: Attributes = LISTED_FILE,
        folder_attributes: Attributes = LISTED_FOLDER,
        read_base: ReadBase | None = None,
        listing: Listing | None = None,
        in_use: Callable[[int], bool] = lambda node_id: False,
        keys_read: Callable[[], set[bytes]] = set,
        now_ns: Callable[[], int] = time.time_ns,
        what: str = "",
        is_follower: bool = False,
    ) -> None:
        """Starts nothing and does no I/O.

        `read_base` reads object versions, through the cache if there is one; `listing` is what the mount shows where no
        node decides, and without it records are kept for good; `in_use` says whether somebody knows a node by its id;
        `keys_read` gives keys of objects that are open without a node; `what` is what other writers are told we are. A follower
        only reads what the writers of shared records have closed.
        """
        # Data files of writers that share a tier differ by it.
        writer = secrets.randbits(48) if records.is_shared else 1
        self.options = options or WriteOptions()
        self.tier = tier
        self.records = records
        self.store = store
        self.state = State(prefix)
        self.ledger = Ledger(self.state, records)
        self.is_follower = is_follower
        self.writers: Writers | None = None
        if records.is_shared and not is_follower:
            self.writers = Writers(
                self.ledger, writer, what, lease_s=self.options.lease_s, on_lease=self._on_lease, on_replaced=self._on_replaced
            )  # fmt: skip
            self.ledger.on_replaced = self._rejoin
        self.freshness = Freshness(self.ledger.take_in, self._wake) if records.is_shared else None
        self.ledger.on_taken = self._on_taken
        # Files whose content others have changed since it was last opened here, or that could not keep what was written: what the kernel
        # has of them is not theirs.
        self.changed_elsewhere: set[int] = set()
        require_time = self.writers.require_time if self.writers is not None else _always
        self.operations = Operations(writer, now_ns, file_attributes, folder_attributes, is_shared=records.is_shared)
        self.files = OpenFiles(
            self.ledger, self.operations, tier, self.options, {}, lambda: self.writeback.noticed(),
            lambda: self.writers is None or self.writers.is_alive(), self._prove_alive,
        )  # fmt: skip
        self.files.on_lost = self.changed_elsewhere.add
        self.uploads = Uploads(
            self.ledger, self.operations, tier, store, self.options, read_base or store.get_range, self.files.drafts,
            ByteBudget(self.options.upload_parts * self.options.part_bytes), require_time,
            lambda state, key: self.deletions.hinders(state, key), watches=self.files.watches,
        )  # fmt: skip
        self.deletions = Deletions(
            self.ledger, self.operations, store, self.options, self._keys_read, self.uploads.busy_keys, require_time
        )
        self.relocation = Relocation(self.ledger, self.operations, store)
        self.retirement = Retirement(
            self.ledger, self.options, self.files.drafts, self.files.delete_data, listing, in_use
        )
        self.writeback = Writeback(
            self.ledger, self.uploads, self.deletions, self.relocation, self.retirement, self.options, now_ns,
            self._sync_open, self._writer_count, lambda: self.does_writeback, self._is_waited_for,
        )  # fmt: skip
        self.room = RoomWatch(tier)
        self.waits = Waits()
        self._listing = listing
        self._other_keys_read = keys_read
        self._back_pressure = BackPressure(self.state, self.files, self.writeback, self.options, self.waits)
        self._base_reads = BaseReads(
            self.state, self.files, self.uploads, self.writeback, self.freshness, lambda: self.does_writeback
        )
        self._flushing = Flushing(self.ledger, self.files, self.writeback, self._keys_read, self._name)
        self._tasks: list[asyncio.Task[None]] = []

    # --- Life. -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> "WriteSide":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> Recovered:
        """Recover what the last process left, and begin to write back, where records are shared when the lease is ours.

        Raises MetadataUnavailable, TierFailed; where records are shared also UsageError (the data is in another tier).
        """
        await asyncio.to_thread(self.ledger.load)
        if self.is_follower:
            recovered = Recovered(len(self.state.dirty), self.state.dirty_bytes, 0, 0, 0, ())
        else:
            if self.writers is not None:
                await asyncio.to_thread(self.writers.join)
                await asyncio.to_thread(mark_tier, self.ledger, self.tier, self.writers.me.number)
            recovered = await asyncio.to_thread(recover, self.ledger, self.tier, self.records)
        if recovered.dirty_files or recovered.doomed or recovered.attempts:
            logger.info(
                "recovered %d dirty files (%d bytes), %d deletions and %d uploads begun",
                recovered.dirty_files, recovered.dirty_bytes, recovered.doomed, recovered.attempts,
            )  # fmt: skip
        if self.freshness is not None:
            self._tasks.append(asyncio.create_task(self.freshness.run(), name="freshness"))
        if self.is_follower:
            return recovered
        if self.writers is not None:
            self._tasks.append(asyncio.create_task(self.writers.run(), name="beats"))
        self._tasks.append(asyncio.create_task(self.writeback.run(), name="writeback"))
        self._tasks.append(asyncio.create_task(self.room.run(), name="room of the write tier"))
        return recovered

    async def close(self) -> None:
        """Stop writing back and close tier and records. What is dirty stays durable, and is found by the next `start`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self.freshness is not None:
            await self.freshness.close()
        for draft in list(self.files.drafts.values()):
            draft.close()
        if self.writers is not None:
            await asyncio.to_thread(self.writers.leave)
        await asyncio.to_thread(self.records.close)
        await asyncio.to_thread(self.tier.close)

    # --- Names. ------------------------------------------------------------------------------------------

    def resolve(self, path: bytes) -> Node | Below | None:
        """What stands at a path: a node, nothing, or what the listing has under a key (`Below`)."""
        with self.ledger.locked() as state:
            return state.resolve(path)

    def create(self, path: Place, attributes: Attributes, shown: Shown = None) -> OpenFile:
        """Make an empty file and open it. Buffered until its first sync, unless others must see it.

        Raises FileExistsError, FileNotFoundError, NotADirectoryError.
        """

        def operation(step: Step) -> OpenFile | Node:
            node = self.operations.create(step, self.state, _now(path), attributes, shown)
            return self._open_now(node, writable=True)

        return self._opened(self.ledger.run(operation), writable=True)

    def open(self, path: Place, shown: Shown = None, *, writable: bool, truncate: bool = False) -> OpenFile:
        """Open a file that has a node, or that the listing shows. With `truncate` the old content stays safe until a sync.

        Raises FileNotFoundError, IsADirectoryError, and OpenElsewhere if another process has it open for writing, for long.
        """

        def operation(step: Step) -> OpenFile | Node:
            node = self.operations.node_at(step, self.state, _now(path), shown)
            if node.kind == Kind.DIRECTORY:
                raise IsADirectoryError(errno.EISDIR, "a folder", os.fsdecode(node.name))
            return self._open_now(
                self.operations.claim(step, self.state, node) if writable else node, writable=writable
            )

        file = self._opened(self._when_closed_elsewhere(operation), writable=writable)
        if truncate:
            file.truncate(0)
        return file

    def open_node(self, node_id: int, *, writable: bool) -> OpenFile:
        """Open by node. Raises FileNotFoundError, and OpenElsewhere as `open` does."""

        def operation(step: Step) -> OpenFile | Node:
            node = self.state.by_id.get(node_id)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, "the file is gone")
            return self._open_now(
                self.operations.claim(step, self.state, node) if writable else node, writable=writable
            )

        if not writable or not self.operations.is_shared:
            with self.ledger.locked() as state:
                return self._opened(operation(Step(state)), writable=writable)
        return self._opened(self._when_closed_elsewhere(operation), writable=writable)

    def _open_now(self, node: Node, *, writable: bool) -> OpenFile | Node:
        """A handle; where records are shared the node, because the commit may be lost to another, and tried again."""
        return node if self.operations.is_shared else self.files.open_locked(node, writable=writable)

    def _opened(self, found: OpenFile | Node, *, writable: bool) -> OpenFile:
        if isinstance(found, OpenFile):
            return found
        with self.ledger.locked() as state:
            file = self.files.open_locked(state.by_id.get(found.id, found), writable=writable)
        self.files.refresh(file.draft)
        return file

    def _when_closed_elsewhere(self, operation: Callable[[Step], T]) -> T:
        """Wait a moment for the other mount that has a file open for writing: its close may be on its way."""
        deadline = time.monotonic() + OPEN_WAIT_S
        while True:
            try:
                return self.ledger.run(operation)
            except OpenElsewhere:
                if time.monotonic() > deadline:
                    raise
            time.sleep(OPEN_POLL_S)
            self.ledger.take_in()

    def mkdir(self, path: Place, attributes: Attributes, shown: Shown = None) -> Node:
        node = self.ledger.run(lambda step: self.operations.mkdir(step, self.state, _now(path), attributes, shown))
        self._wake()
        return node

    def symlink(self, path: Place, target: bytes, attributes: Attributes, shown: Shown = None) -> Node:
        node = self.ledger.run(
            lambda step: self.operations.symlink(step, self.state, _now(path), target, attributes, shown)
        )
        self._wake()
        return node

    def unlink(self, path: Place, shown: Shown = None) -> None:
        """Remove a file or link. Raises FileNotFoundError, IsADirectoryError."""

        def operation(step: Step) -> Node | None:
            at = _now(path)
            return self.operations.unlink(step, self.state, at, shown, keep_inline=self._is_open(at))

        self._discard(self.ledger.run(operation))
        self._wake()

    def rmdir(self, path: Place, shown: Shown = None) -> None:
        """Remove a folder that is empty; the caller has seen that the listing shows nothing in it. Raises OSError ENOTEMPTY."""
        self.ledger.run(lambda step: self.operations.rmdir(step, self.state, _now(path), shown))
        self._wake()

    def rename(
        self, old: Place, new: Place, shown_old: Shown = None, shown_new: Shown = None, *, replace: bool = True
    ) -> None:
        """Move a file, link or folder onto a name, atomically for every mount. Raises what rename(2) says."""
        found = self.resolve(_now(old))
        if isinstance(found, Node) and (draft := self.files.drafts.get(found.id)) is not None:
            # Else a crash could leave the new name without the content that the old one had.
            self.files.sync(draft)

        def operation(step: Step) -> Node | None:
            onto = _now(new)
            return self.operations.rename(
                step,
                self.state,
                _now(old),
                onto,
                shown_old,
                shown_new,
                keep_inline=self._is_open(onto),
                replace=replace,
            )

        self._discard(self.ledger.run(operation))
        self._wake()

    def exchange(self, first: Place, second: Place, shown_first: Shown = None, shown_second: Shown = None) -> None:
        """Swap two names, atomically."""
        for path in (first, second):
            found = self.resolve(_now(path))
            if isinstance(found, Node) and (draft := self.files.drafts.get(found.id)) is not None:
                self.files.sync(draft)
        self.ledger.run(
            lambda step: self.operations.exchange(
                step, self.state, _now(first), _now(second), shown_first, shown_second
            )
        )
        self._wake()

    def set_attributes(
        self, path: Place, shown: Shown = None, *, mode: int | None = None, uid: int | None = None,
        gid: int | None = None, mtime_ns: int | None = None,
    ) -> Node:  # fmt: skip
        """Change what is given; `mode` is permission bits."""
        given = {"mode": mode, "uid": uid, "gid": gid, "mtime_ns": mtime_ns}

        def operation(step: Step) -> Node:
            node = self.operations.node_at(step, self.state, _now(path), shown)
            draft = self.files.drafts.get(node.id)
            if draft is not None and mtime_ns is not None:
                draft.mtime_ns = mtime_ns
            if mtime_ns is not None:
                self.state.touched.pop(node.id, None)
            return self.operations.change(
                step, node, **{name: value for name, value in given.items() if value is not None}
            )

        node = self.ledger.run(operation)
        self._wake()
        return node

    def set_xattr(self, path: Place, name: bytes, value: bytes | None, shown: Shown = None) -> None:
        """Set or (None) remove an extended attribute. Raises MetadataTooLarge, OSError ENODATA."""

        def operation(step: Step) -> None:
            node = self.operations.node_at(step, self.state, _now(path), shown)
            xattrs = dict(node.xattrs or {})
            if value is not None:
                xattrs[name] = value
                if not fits(xattrs):
                    raise MetadataTooLarge(
                        f"the extended attributes of {os.fsdecode(node.name)} do not fit into 2 KiB of object metadata"
                    )
            elif xattrs.pop(name, None) is None:
                raise OSError(errno.ENODATA, "no such extended attribute")
            self.operations.change(step, node, xattrs=xattrs or None)

        self.ledger.run(operation)
        self._wake()

    # --- Bytes. ------------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether `size` more dirty bytes may be written now; if not, `wait_for_room`."""
        return self._back_pressure.has_room(size)

    async def wait_for_room(self, size: int) -> None:
        """Hold a writer until there is room. Raises TierFull after `dirty_wait_s`."""
        await self._back_pressure.wait_for_room(size)

    async def fill_gaps(self, file: OpenFile) -> None:
        """Make fewer intervals of a file that was written in thousands of places; the content stays the same.

        An under store that does not answer is a failure only when the file is in far too many pieces already. Raises StoreError
        kinds, BaseGone, TierFull.
        """
        await self._base_reads.fill_gaps(file)

    async def fetch(self, file: OpenFile, offset: int, size: int) -> Buffer:
        """Read a range, fetching what must come from the base version. Raises StoreError kinds, BaseGone."""
        return await self._base_reads.fetch(file, offset, size)

    # --- Waiting and seeing. -----------------------------------------------------------------------------

    async def flush(self, path: bytes | None = None, *, timeout_s: float | None = None) -> None:
        """Return when everything at and below `path` that is durable now is clean. Raises Incomplete at the time-out.

        A deleted object that a program still has open is not waited for: it goes when it is closed.
        """
        async with self.writers.flushing() if self.writers is not None else contextlib.nullcontext():
            await self._flushing.flush(path, timeout_s)

    def status(self) -> WriteStatus:
        room, trouble = self.room.room, self.files.trouble
        stale_since = self.freshness.stale_since if self.freshness is not None else None
        with self.ledger.locked() as state:
            oldest_age_s = max((self.writeback.age_s(state.by_id[i]) for i in islice(state.dirty, 1000)), default=0.0)
            return WriteStatus(
                tier=self.tier.label, records=self.records.label, writeback_by=self._writeback_by(),
                stale_s=time.monotonic() - stale_since if stale_since is not None else 0.0,
                dirty_files=len(state.dirty), dirty_bytes=state.dirty_bytes,
                dirty_limit_bytes=self.options.max_dirty_bytes,
                buffered_bytes=self.files.buffered_bytes, held_bytes=state.held_bytes,
                oldest_age_s=oldest_age_s,
                doomed=len(state.doomed), running=len(self.writeback.running),
                uploading=len(self.uploads.active), uploading_bytes=sum(self.uploads.uploading_bytes.values()),
                open_files=len(self.files.drafts),
                failures=tuple(f"{self._name(w)}: {f.reason}" for w, f in self.writeback.failures.items() if f.tries)[:100],
                failed=dict(self.writeback.failed),
                paused=self.writeback.paused_reason if time.monotonic() < self.writeback.paused_until else "",
                counts=dataclasses.replace(self.uploads.counts),
                deleted=self.deletions.deleted, spared=self.deletions.spared, evicted_bytes=self.retirement.evicted_bytes,
                waits=dataclasses.replace(self.waits),
                tier_total_bytes=room.total_bytes if room is not None else None,
                tier_free_bytes=room.free_bytes if room is not None else None,
                tier_trouble=trouble.reason,
                tier_trouble_s=time.monotonic() - trouble.since if trouble.reason else 0.0,
            )  # fmt: skip

    def whereabouts(self, path: bytes) -> Whereabouts | None:
        """Where a file is durable; None if no node decides (then the under store has it, or there is none)."""
        with self.ledger.locked() as state:
            node = state.resolve(path)
            if not isinstance(node, Node):
                return None
            attempt = state.attempt_of.get(node.id)
            draft = self.files.drafts.get(node.id)
            if draft is not None and draft.is_changed:
                name = "buffered"
            elif attempt is not None and attempt in self.uploads.active:
                name = "uploading"
            else:
                name = "durable" if node.is_dirty else "clean"
            failure = self.writeback.failures.get(node.id)
            return Whereabouts(
                path=path, state=name, size=node.size if draft is None else draft.size,
                dirty_since_ns=node.dirty_since_ns, stored_bytes=node.stored_bytes,
                stored_in=self.records.label if node.inline else self.tier.label if node.data else "",
                key=state.key_of(node) or b"", etag=node.remote.etag if node.remote is not None else "",
                sent_bytes=self.uploads.uploading_bytes.get(node.id, 0),
                failure=failure.reason if failure is not None and failure.tries else "",
            )  # fmt: skip

    # --- Inside. -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.writeback.wake()

    def _is_open(self, path: bytes) -> bool:
        node = self.state.resolve(path)
        return isinstance(node, Node) and node.id in self.files.drafts

    def _discard(self, node: Node | None) -> None:
        """A node went: so does its data, or when the last handle goes."""
        if node is None:
            return
        with self.ledger.locked():
            draft = self.files.drafts.get(node.id)
            if draft is not None:
                draft.unlinked = True
        if draft is None and node.data and not node.inline:
            self.files.delete_data(node.data)

    def _keys_read(self) -> set[bytes]:
        """Keys whose objects open files still read from. Wants the ledger's lock."""
        bases = {draft.base.key for draft in self.files.drafts.values() if draft.base is not None}
        return bases | self._other_keys_read()

    def _writer_count(self, node_id: int) -> int:
        """How many have a file open for writing, here and elsewhere."""
        draft = self.files.drafts.get(node_id)
        node = self.state.by_id.get(node_id)
        other = self.state.other_writer(node, self.operations.writer) if node is not None else None
        return (draft.writers if draft is not None else 0) + (other is not None)

    @property
    def does_writeback(self) -> bool:
        """Whether this is the process that brings what is dirty into the under store."""
        return not self.is_follower and (self.writers is None or self.writers.holds_lease)

    def _writeback_by(self) -> str:
        if self.does_writeback:
            return ""
        lease = self.state.lease
        holder = self.state.writers.get(lease.holder) if lease is not None else None
        return holder.label if holder is not None else "nobody"

    def _is_waited_for(self) -> bool:
        me = self.operations.writer
        return any(writer.is_flushing for writer in list(self.state.writers.values()) if writer.number != me)

    def _on_lease(self) -> None:
        """The writeback is ours from now on: what dead writers left over goes."""
        try:
            found = collect_garbage(self.ledger, self.tier, self.records)
        except TierError as error:
            logger.warning("what dead writers left in the tier stays for now: %s", error)
        else:
            logger.info("this process does the writeback now; %d pieces of garbage deleted", found)
        self._wake()

    def _prove_alive(self) -> None:
        if self.writers is not None:
            self.writers.prove_alive()

    def _rejoin(self) -> bool:
        """Others took this process for dead: be a writer again, unless the data is kept in another tier by now."""
        mark = self.state.tier_mark
        if self.writers is None or (mark is not None and mark.identity != self.tier.identity):
            return False
        return self.writers.rejoin()

    def _on_replaced(self, number: int) -> None:
        """From now on this process is another writer. With the ledger's lock held."""
        self.operations.writer = number
        lost = self.files.lose_writers_locked()
        logger.warning(
            "others took this process for dead, because it was suspended or did not reach the metadata store; it goes on as a new writer, "
            "without %d files that were open for writing", lost,
        )  # fmt: skip

    def _on_taken(self, key: bytes, old: Entry | None, new: Entry | None) -> None:
        """Another writer changed a record. With the ledger's lock held."""
        if not isinstance(old, Node):
            return
        is_same = isinstance(new, Node) and new.id == old.id
        if is_same and isinstance(new, Node) and new.content != old.content:
            self.changed_elsewhere.add(new.id)
        # Where a node went, or a folder shows another part of the bucket, the listing decides, and must not be an old one.
        folder = self.state.by_id.get(old.parent)
        if self._listing is not None and folder is not None and folder.lower is not None and new is None:
            self._listing.expire(folder.lower)
        if self._listing is not None and isinstance(new, Node) and new.lower is not None and new.lower != old.lower:
            self._listing.expire(new.lower)

    async def _sync_open(self, node_id: int) -> None:
        """Commit a file that has been dirty for too long while open; one that is being written anew keeps what it held until it is closed."""
        draft = self.files.drafts.get(node_id)
        if draft is not None and not draft.is_rewritten:
            await asyncio.to_thread(self.files.sync, draft)

    def _name(self, what: object) -> str:
        node = self.state.by_id.get(what) if isinstance(what, int) else None
        return repr(self.state.path_of(node)) if node is not None else str(what)


def _always() -> None:
    """No lease is needed where nobody shares the records."""


def _now(place: Place) -> bytes:
    return place if isinstance(place, bytes) else place()
