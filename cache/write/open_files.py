"""Files that are open: the table of drafts, handles on them, and how a draft becomes durable.

A draft exists while its node is open in this process, and all handles share it. A file that was deleted while open keeps its
data until the last handle goes.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ...errors import DirtyDataMissing, TierError
from ...tiers.durable import DurableTier
from ...tiers.understore import Buffer
from .drafts import Draft, Pieces, Snapshot, Watch, draft_of
from .extents import Extents
from .ledger import Ledger, Step
from .nodes import Node
from .operations import Operations
from .options import WriteOptions

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
        return self.draft.read(offset, size)

    def write(self, offset: int, data: Buffer) -> None:
        """Store all of `data`. Buffered: durable after `sync`. The caller has asked `WriteSide.has_room`."""
        self._files.written(self.draft, self.draft.write(offset, data, self._files.operations.now_ns()))

    def append(self, data: Buffer) -> None:
        self._files.written(self.draft, self.draft.append(data, self._files.operations.now_ns()))

    def truncate(self, size: int) -> None:
        self._files.truncate(self.draft, size)

    def sync(self) -> None:
        """Return when everything written through any handle of this file is durable (fsync, close)."""
        self._files.sync(self.draft)

    def release(self) -> None:
        """Give the handle up. What is not durable yet is made so: pages of a mapping may arrive after the last close."""
        if self._open:
            self._open = False
            self._files.release(self.draft, writable=self.writable)


@dataclass(slots=True)
class OpenFiles:
    """`on_dirty` is told when a node has become dirty or bytes were freed."""

    ledger: Ledger
    operations: Operations
    tier: DurableTier
    options: WriteOptions
    watches: dict[int, Watch]
    on_dirty: Callable[[], None]
    drafts: dict[int, Draft] = field(default_factory=dict)
    buffered_bytes: int = 0

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

    def written(self, draft: Draft, added_bytes: int) -> None:
        with self.ledger.locked():
            draft.buffered_bytes += added_bytes
            self.buffered_bytes += added_bytes

    def truncate(self, draft: Draft, size: int) -> None:
        """Cut or lengthen a file. Durable bytes that are cut off leave the record first: a crash must not find it naming bytes that are gone."""
        with draft.syncing:
            if draft.cuts_data(size):
                self.ledger.run(lambda step: self._commit_cut(step, draft, size))
            draft.truncate(size, self.operations.now_ns())

    def sync(self, draft: Draft) -> None:
        """Make a draft durable. Raises TierFull, TierFailed, MetadataUnavailable: then it is not, and nothing acked is touched."""
        with draft.syncing:
            node = self.ledger.state.by_id.get(draft.node_id)
            if node is None or draft.unlinked:
                return
            if not draft.is_changed and (node.is_recorded or node.base is not None):
                return
            snapshot = draft.snapshot()
            buffered_bytes = draft.buffered_bytes
            draft.sync_data()
            replaced = self.ledger.run(lambda step: self._commit(step, draft, snapshot))
            with self.ledger.locked():
                draft.buffered_bytes -= buffered_bytes
                self.buffered_bytes -= buffered_bytes
            for name in {*draft.committed(snapshot), *([replaced] if replaced else [])}:
                self.delete_data(name)
        self.on_dirty()

    def release(self, draft: Draft, *, writable: bool) -> None:
        try:
            if writable:
                self.sync(draft)
        finally:
            with self.ledger.locked() as state:
                draft.writers -= writable
                draft.handles -= 1
                last = draft.handles == 0
                if last:
                    del self.drafts[draft.node_id]
                    self.buffered_bytes -= draft.buffered_bytes
                    node = state.by_id.get(draft.node_id)
                    if node is not None and not node.is_recorded and node.base is not None:
                        state.remove(node)  # opened to be changed, and never was
            if last:
                self._put_away(draft)
        self.on_dirty()

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

    def _commit(self, step: Step, draft: Draft, snapshot: Snapshot) -> str | None:
        """Put a snapshot into its node; the data file that the node named before and does not any more."""
        node = self.ledger.state.by_id.get(draft.node_id)
        if node is None:
            return None
        data, inline = snapshot.data, False
        if snapshot.inline is not None:
            data = ""
            if snapshot.inline:
                data, inline = self.new_name(), True
                step.put_inline[data] = snapshot.inline
        now_ns = self.operations.now_ns()
        step.put(
            msgspec.structs.replace(
                node, size=snapshot.size, data=data, inline=inline, extents=snapshot.extents if data else (),
                base=draft.current(snapshot.base), base_limit=snapshot.base_limit,
                mtime_ns=snapshot.mtime_ns, ctime_ns=now_ns,
                generation=node.generation + 1, dirty_since_ns=node.dirty_since_ns or now_ns, writer=self.operations.writer,
            )
        )  # fmt: skip
        if not node.data or node.data == data:
            return None
        if node.inline:
            step.drop_inline.append(node.data)
            return None
        return node.data

    def _commit_cut(self, step: Step, draft: Draft, size: int) -> None:
        node = self.ledger.state.by_id.get(draft.node_id)
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
            )
        )  # fmt: skip

    def _load_inline(self, name: str) -> bytes:
        data = self.ledger.inline(name)
        if data is None:
            raise DirtyDataMissing(f"inline data {name} is gone from the records", remedy="restore the records")
        return data
