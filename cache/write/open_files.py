"""Files that are open: the table of drafts, handles on them, and how a draft becomes durable.

A draft exists while its node is open in this process, and all handles share it. A file that was deleted while open keeps its
data until the last handle goes.
"""

import errno
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ...errors import DirtyDataMissing, ForebayError, TierError
from ...tiers.durable import DurableTier
from ...tiers.understore import Buffer
from .drafts import Draft, Pieces, Snapshot, Watch, draft_of
from .extents import Extents
from .ledger import Ledger, Step
from .nodes import Node
from .operations import Operations
from .options import WriteOptions
from .trouble import REFUSALS, Trouble

logger = logging.getLogger(__name__)


class OpenFile:
    """A handle. Methods may come from any thread, and block on the write tier at most."""

    def __init__(self, files: "OpenFiles", draft: Draft, *, writable: bool) -> None:
        self._files = files
        self.draft = draft
        self.writable = writable
        self._open = True

    @property
    def node_id(self) -> int:
        return self.draft.node_id

    @property
    def size(self) -> int:
        return self.draft.size

    def read(self, offset: int, size: int) -> Buffer | Pieces:
        """Bytes of the range, cut at the end of the file; `Pieces` when some must be fetched (`WriteSide.fetch`)."""
        if self.draft.is_lost:
            raise _stale()
        try:
            return self.draft.read(offset, size)
        except DirtyDataMissing:
            if not self._files.renew(self.draft):
                raise
            return self.draft.read(offset, size)

    def must_tell(self, offset: int) -> bool:
        """Whether `write` has to commit something before."""
        return self._files.must_tell(self.draft, offset)

    def write(self, offset: int, data: Buffer) -> None:
        """Store all of `data`. Buffered: durable after `sync`. The caller has asked `WriteSide.has_room`."""
        try:
            self._files.prepare(self.draft, offset)
            self._files.written(self.draft, self.draft.write(offset, data, self._files.operations.now_ns()))
        except REFUSALS as error:
            self._files.trouble.refused(self.node_id, error)
            raise
        self._files.trouble.wrote(self.node_id)

    def append(self, data: Buffer) -> None:
        self._files.prepare(self.draft, self.draft.size)
        self._files.written(self.draft, self.draft.append(data, self._files.operations.now_ns()))

    def truncate(self, size: int) -> None:
        self._files.truncate(self.draft, size)

    def sync(self, *, closing: bool = False) -> None:
        """Return when everything written through any handle of this file is durable (fsync, close).

        With `closing` other writers may open it from then on, if this is the only handle that writes.
        """
        self._files.sync(self.draft, closing=closing)

    def release(self) -> None:
        """Give the handle up. What is not durable yet is made so: pages of a mapping may arrive after the last close."""
        if self._open:
            self._open = False
            self._files.release(self.draft, writable=self.writable)


@dataclass(slots=True)
class OpenFiles:
    """`on_dirty` is told when a node has become dirty or bytes were freed; `on_put_back` (with the ledger's lock held) that a node is gone
    because its file was opened to be changed and never was: the listing decides again; `on_lost` that what was written to a node could not be
    kept, and its content is again what it was before. `is_alive` says whether others cannot have taken this writer for dead yet, and
    `prove_alive` sees to it that they do not, or raises (`Writers`).

    Where records are shared, a file is open for writing in one process at a time (`Operations.claim`). Whoever reads it elsewhere goes on
    with what was committed when it is opened again, or when what it reads from is gone.
    """

    ledger: Ledger
    operations: Operations
    tier: DurableTier
    options: WriteOptions
    watches: dict[int, Watch]
    on_dirty: Callable[[], None]
    is_alive: Callable[[], bool]
    prove_alive: Callable[[], None]
    on_put_back: Callable[[int], None] = lambda node_id: None
    on_lost: Callable[[int], None] = lambda node_id: None
    trouble: Trouble = field(default_factory=Trouble)
    drafts: dict[int, Draft] = field(default_factory=dict)
    buffered_bytes: int = 0
    # Files that were closed while the records could not be told: they still say that we have them open.
    unclaimed: set[int] = field(default_factory=set)

    def new_name(self) -> str:
        """A name for data that was never used: this writer's number, and chance."""
        return f"{self.operations.writer:x}-{secrets.token_hex(8)}"

    def open_locked(self, node: Node, *, writable: bool) -> OpenFile:
        """A handle of a node that is in the state now. Wants the ledger's lock."""
        draft = self.drafts.get(node.id)
        if draft is None:
            draft = draft_of(node, self.tier, self.options.inline_bytes, self.new_name, self._load_inline)
            draft.watch = self.watches.get(node.id)
            self.drafts[node.id] = draft
        draft.handles += 1
        draft.writers += writable
        return OpenFile(self, draft, writable=writable)

    def lose_writers_locked(self) -> int:
        """Let go of what was open for writing, because others may write it now; how many files that were. Wants the ledger's lock.

        Handles of them get ESTALE from now on. Who opens such a file again has what was committed.
        """
        lost = [draft for draft in self.drafts.values() if draft.writers or draft.is_changed]
        for draft in lost:
            draft.is_lost = True
            del self.drafts[draft.node_id]
            if draft.is_changed:
                self.on_lost(draft.node_id)
            self.buffered_bytes -= draft.buffered_bytes
            draft.buffered_bytes = 0
        self.unclaimed.clear()
        return len(lost)

    def written(self, draft: Draft, added_bytes: int) -> None:
        with self.ledger.locked():
            if draft.is_lost:
                return
            draft.buffered_bytes += added_bytes
            self.buffered_bytes += added_bytes

    def must_tell(self, draft: Draft, offset: int) -> bool:
        """Whether `prepare` has to ask or tell others. Takes microseconds."""
        if self._is_doubtful(draft):
            return True
        if not draft.must_tell(offset):
            return False
        if not draft.syncing.acquire(blocking=False):
            return True  # a commit is on its way: find out after it
        try:
            return self._must_commit(draft)
        finally:
            draft.syncing.release()

    def _is_doubtful(self, draft: Draft) -> bool:
        """Whether others may write the data file of a draft by now, because they take us for dead."""
        return self.operations.is_shared and draft.named_end > 0 and not self.is_alive()

    def _must_commit(self, draft: Draft) -> bool:
        """Whether the record has to say that bytes it names are going to change; if not it is not asked again. Wants `draft.syncing`."""
        with self.ledger.locked() as state:
            node = state.by_id.get(draft.node_id)
            is_resting = node is None or (
                node.is_dirty and node.id not in state.attempt_of and node.id not in self.watches
            )
            draft.is_told = draft.unlinked or (is_resting and not self.operations.is_shared)
            return not draft.is_told

    def prepare(self, draft: Draft, offset: int) -> None:
        """Before bytes at `offset` are written. Those that a record names may be on their way to the under store, or be there: then
        the record says before they change that it has to be uploaded again. Else another process could publish the half of a change, and
        after a crash the file could differ for good from an object that is said to be the same.

        Raises OSError ESTALE if the file is gone, or somebody else's now.
        """
        if self._is_doubtful(draft):
            self.prove_alive()
        if draft.is_lost or (
            self.operations.is_shared and not draft.unlinked and draft.node_id not in self.ledger.state.by_id
        ):
            raise _stale()
        if draft.must_tell(offset):
            with draft.syncing:
                if draft.must_tell(offset) and self._must_commit(draft):
                    self.ledger.run(lambda step: self._tell(step, draft))
                    draft.is_told = True

    def refresh(self, draft: Draft) -> bool:
        """Take in what others made of a file that is open here and not changed; whether anything is different."""
        node = self.ledger.state.by_id.get(draft.node_id)
        if node is None:
            return False
        with draft.lock:
            if (
                draft.base != node.base
                and draft.base is not None
                and node.base is not None
                and draft.content == node.content
            ):
                draft.base_replaced(draft.base, node.base)
            is_loaded = draft.inline and draft.file is not None
            is_other = draft.content != node.content or (draft.data_name != node.data and not is_loaded)
            if draft.is_changed or not is_other:
                return False
            draft.reload(node)
            return True

    def renew(self, draft: Draft) -> bool:
        """What a file reads from is gone: go on with what the records say now; False if they say the same. Raises OSError ESTALE."""
        if not self.operations.is_shared:
            return False
        self.ledger.take_in()
        if draft.node_id not in self.ledger.state.by_id:
            raise _stale()
        return self.refresh(draft)

    def truncate(self, draft: Draft, size: int) -> None:
        """Cut or lengthen a file. Durable bytes that are cut off leave the record first: a crash must not find it naming bytes that are gone."""
        with draft.syncing:
            if draft.is_lost:
                raise _stale()
            if draft.cuts_data(size):
                self.ledger.run(lambda step: self._commit_cut(step, draft, size))
                draft.named_end = min(draft.named_end, size)
            draft.truncate(size, self.operations.now_ns())

    def sync(self, draft: Draft, *, closing: bool = False) -> None:
        """Make a draft durable. Raises TierFull, TierFailed, MetadataUnavailable: then it is not, and nothing acked is touched.

        Raises OSError ESTALE if the file was removed by another writer, or is another's now.
        """
        try:
            self._sync(draft, closing=closing)
        except REFUSALS as error:
            self.trouble.refused(draft.node_id, error)
            raise

    def _sync(self, draft: Draft, *, closing: bool) -> None:
        with draft.syncing:
            if draft.is_lost:
                if draft.is_changed:
                    raise _stale()
                return
            node = self.ledger.state.by_id.get(draft.node_id)
            if node is None and self.operations.is_shared and draft.is_changed and not draft.unlinked:
                raise _stale()
            if node is None or draft.unlinked:
                return
            if not draft.is_changed and (node.is_recorded or node.base is not None):
                draft.is_told = False  # what was going to be written was not
                return
            snapshot = draft.snapshot()
            buffered_bytes = draft.buffered_bytes
            draft.sync_data()
            replaced, node = self.ledger.run(lambda step: self._commit(step, draft, snapshot, closing=closing))
            if snapshot.inline is None:
                self.trouble.synced(draft.node_id)
            if node is not None:
                draft.note_committed(node)
            with self.ledger.locked():
                draft.buffered_bytes -= buffered_bytes
                self.buffered_bytes -= buffered_bytes
            for name in {*draft.committed(snapshot), *([replaced] if replaced else [])}:
                self.delete_data(name)
        self.on_dirty()

    def release(self, draft: Draft, *, writable: bool) -> None:
        try:
            if writable:
                self.sync(draft, closing=True)
        finally:
            with self.ledger.locked() as state:
                draft.writers -= writable
                draft.handles -= 1
                last = draft.handles == 0
                if last:
                    if draft.is_changed:
                        self.on_lost(draft.node_id)
                    if self.drafts.get(draft.node_id) is draft:
                        del self.drafts[draft.node_id]
                    self.buffered_bytes -= draft.buffered_bytes
                    node = state.by_id.get(draft.node_id)
                    if node is not None and not node.is_recorded and node.base is not None:
                        state.remove(node)  # opened to be changed, and never was
                        self.on_put_back(node.id)
                if writable and not draft.writers and self.operations.is_shared and not draft.is_lost:
                    self.unclaimed.add(draft.node_id)
            try:
                self.give_up_claims()
            except ForebayError as error:
                logger.warning(
                    "others cannot write a file that was closed here, until the records can be told: %s", error
                )
            if last:
                self._put_away(draft)
        self.on_dirty()

    def give_up_claims(self) -> None:
        """Tell the records of files that nobody here has open for writing any more. Raises MetadataUnavailable, WriterReplaced."""
        for node_id in list(self.unclaimed):
            self.ledger.run(lambda step, node_id=node_id: self._unclaim(step, node_id))  # type: ignore[misc]
            self.unclaimed.discard(node_id)

    def _unclaim(self, step: Step, node_id: int) -> None:
        node = self.ledger.state.by_id.get(node_id)
        draft = self.drafts.get(node_id)
        if node is None or node.open_by != self.operations.writer or (draft is not None and draft.writers):
            return
        step.put(msgspec.structs.replace(node, open_by=0, rewrites=node.rewrites + node.rewrites % 2))

    def _tell(self, step: Step, draft: Draft) -> None:
        node = self.ledger.state.by_id.get(draft.node_id)
        if self.operations.is_shared:
            self._require_ours(node, draft)
        if node is None:
            return
        # Two more if it is odd already: a writer that died left it so, and an upload may have begun since.
        rewrites = node.rewrites + 1 + node.rewrites % 2 if self.operations.is_shared else 0
        step.put(
            msgspec.structs.replace(
                node, rewrites=rewrites, dirty_since_ns=node.dirty_since_ns or self.operations.now_ns(),
                generation=node.generation + 1, writer=self.operations.writer,
            )
        )  # fmt: skip

    def _require_ours(self, node: Node | None, draft: Draft) -> None:
        """Where others write too, a file goes on only from the content that this process knows."""
        if (
            node is None
            or draft.is_lost
            or node.content != draft.content
            or self.ledger.state.other_writer(node, self.operations.writer)
        ):
            raise _stale()

    def delete_data(self, name: str) -> None:
        """Give space back. If that fails the file is garbage, which recovery deletes."""
        try:
            self.tier.delete(name)
        except TierError as error:
            logger.warning("data file stays until the next recovery: %s", error)

    def _put_away(self, draft: Draft) -> None:
        draft.close()
        node = self.ledger.state.by_id.get(draft.node_id)
        kept = node.data if node is not None and not node.inline else ""
        names = set(draft.replaced)
        if draft.data_name and not draft.inline:
            names.add(draft.data_name)
        for name in names - {kept}:
            self.delete_data(name)
        if draft.unlinked and draft.inline and draft.data_name:

            def drop(step: Step) -> None:
                step.drop_inline.append(draft.data_name)

            self.ledger.run(drop)

    def _commit(self, step: Step, draft: Draft, snapshot: Snapshot, *, closing: bool) -> tuple[str | None, Node | None]:
        """Put a snapshot into its node: the data file that the node named before and does not any more, and the node as it is now."""
        node = self.ledger.state.by_id.get(draft.node_id)
        shared: dict[str, int] = {}
        if self.operations.is_shared:
            self._require_ours(node, draft)
            assert node is not None
            open_by = 0 if closing and draft.writers <= 1 else self.operations.writer
            shared = {"content": node.content + 1, "open_by": open_by, "rewrites": node.rewrites + node.rewrites % 2}
        if node is None:
            return None, None
        data, inline = snapshot.data, False
        if snapshot.inline is not None:
            data = ""
            if snapshot.inline:
                data, inline = self.new_name(), True
                step.put_inline[data] = snapshot.inline
        now_ns = self.operations.now_ns()
        committed = msgspec.structs.replace(
            node, size=snapshot.size, data=data, inline=inline, extents=snapshot.extents if data else (),
            base=draft.current(snapshot.base), base_limit=snapshot.base_limit,
            mtime_ns=snapshot.mtime_ns, ctime_ns=now_ns,
            generation=node.generation + 1, dirty_since_ns=node.dirty_since_ns or now_ns, writer=self.operations.writer,
            **shared,
        )  # fmt: skip
        step.put(committed)
        if not node.data or node.data == data:
            return None, committed
        if node.inline:
            step.drop_inline.append(node.data)
            return None, committed
        return node.data, committed

    def _commit_cut(self, step: Step, draft: Draft, size: int) -> None:
        node = self.ledger.state.by_id.get(draft.node_id)
        if self.operations.is_shared:
            self._require_ours(node, draft)
        if node is None or node.inline or node.data != draft.data_name or node.size <= size:
            return
        extents = Extents(node.extents)
        if extents.end <= size:
            return
        extents.cut(size)
        now_ns = self.operations.now_ns()
        step.put(
            msgspec.structs.replace(
                node, size=size, extents=extents.flat(), base_limit=min(node.base_limit, size), mtime_ns=now_ns, ctime_ns=now_ns,
                generation=node.generation + 1, dirty_since_ns=node.dirty_since_ns or now_ns, writer=self.operations.writer,
                rewrites=node.rewrites + 2 * self.operations.is_shared,
            )
        )  # fmt: skip

    def _load_inline(self, name: str) -> bytes:
        data = self.ledger.inline(name)
        if data is None:
            raise DirtyDataMissing(f"inline data {name} is gone from the records", remedy="restore the records")
        return data


def _stale() -> OSError:
    return OSError(errno.ESTALE, "another mount has removed the file, or writes it now")
