"""The content of one file that is open: what handles read, write, truncate and sync.

All handles of a node in this process share one draft, so that each sees at once what the others write. A draft starts
from a node and remembers how far it has gone from it; `snapshot` says what to commit, and `CommitContent` of the write
side commits it.

Small files live in memory (`MemoryFile`) until they pass `inline_bytes`; then their bytes move to a data file.

Reading merges three sources: extents from the data, the base version (through `Pieces`, because fetching from the under
store is the caller's job and must not block here), zeros.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ...tiers.durable import DurableFile, DurableTier
from ...tiers.understore import Buffer
from .extents import Extents
from .nodes import Node, Remote

# Beyond this many intervals the holes of a file without base are filled up (they are zeros anyway), and the ranges
# around changes of one with a base are asked for (`gaps_to_fill`).
MAX_EXTENTS = 4096
ZERO_BYTES = 1024 * 1024


class MemoryFile:
    """A data file in memory, for bytes that will go into a record. Same contract as DurableFile; `sync` is the record's."""

    def __init__(self, name: str, data: bytes = b"") -> None:
        self._name = name
        self._data = bytearray(data)

    @property
    def name(self) -> str:
        return self._name

    def write(self, offset: int, data: Buffer) -> None:
        if offset > len(self._data):
            self._data.extend(bytes(offset - len(self._data)))
        self._data[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> Buffer:
        data = bytes(self._data[offset : offset + size])
        return data + bytes(size - len(data)) if len(data) < size else data

    def truncate(self, size: int) -> None:
        del self._data[size:]

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def contents(self) -> bytes:
        return bytes(self._data)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a draft at one moment, as fields of a node. `inline` are the bytes that go into the record."""

    change: int
    size: int
    data: str
    inline: bytes | None
    extents: tuple[int, ...]
    base: Remote | None
    base_limit: int
    mtime_ns: int


@dataclass(slots=True)
class Watch:
    """What happened to a file's bytes since an upload began to read them.

    `size` is the size when it began. Appending leaves the upload a whole, older state; anything else disturbs it.
    `limit` is the smallest size the file has had since: how much of what is uploaded may serve as its base.
    """

    size: int
    limit: int
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Pieces:
    """An answer to a read that needs the base: `parts` holds bytes, or (offset, size) to fetch from `base`, in order."""

    base: Remote
    parts: tuple[Buffer | tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """A range between two intervals of a draft, and what it showed when the gap was found."""

    offset: int
    size: int
    base: Remote | None
    base_limit: int


@dataclass(slots=True)
class Draft:
    """See the module. Methods that end in `_locked` want `lock` held.

    `lock` is held while data goes to the tier, so that a write and a truncation of one file cannot cross; `syncing`
    is held from snapshot to commit, so that an older snapshot is never committed over a newer one. Neither is ever taken
    by someone who holds the ledger's lock.
    """

    node_id: int
    size: int
    base: Remote | None
    base_limit: int
    extents: Extents
    mtime_ns: int
    data_name: str
    inline: bool
    tier: DurableTier
    inline_bytes: int
    new_name: Callable[[], str]
    load_inline: Callable[[str], bytes]
    file: DurableFile | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    syncing: threading.Lock = field(default_factory=threading.Lock)
    change: int = 0
    committed_change: int = 0
    emptied_change: int = 0  # the last one that cut the file to nothing
    handles: int = 0
    writers: int = 0
    unlinked: bool = False
    # Whether this process was taken for dead while it had the file open for writing: what it did to it counts no more.
    is_lost: bool = False
    watch: Watch | None = None
    # Data files that the committed node may still name; deleted once a commit or an unlink has passed them.
    replaced: list[str] = field(default_factory=list)
    # Their open files: somebody may be syncing one.
    abandoned: list[DurableFile] = field(default_factory=list)
    # Versions that were base and are overwritten by our own upload, and what took their place.
    rebased: dict[Remote, Remote] = field(default_factory=dict)
    # Whether the data file may hold bytes where the extents say it holds none: a crash can leave some that were never synced.
    has_leftovers: bool = False
    # Which state of the content this goes on from, where records are shared (`Node.content`); up to where the node names bytes of the
    # data file; whether it is known that some of those are being overwritten (`OpenFiles.prepare`).
    content: int = 0
    named_end: int = 0
    is_told: bool = False
    # Bytes written since the last commit: they count as dirty though no node says so yet.
    buffered_bytes: int = 0

    def must_tell(self, offset: int) -> bool:
        """Whether writing at `offset` overwrites bytes that the node names, and nobody knows yet."""
        return offset < self.named_end and not self.is_told

    def reload(self, node: Node) -> None:
        """Go on from what another writer has made of the file. Nothing was changed here."""
        with self.lock:
            if self.file is not None:
                self.file.close()
                self.file = None
            self.has_leftovers = False
            self.size, self.base, self.base_limit, self.mtime_ns = node.size, node.base, node.base_limit, node.mtime_ns
            self.extents, self.data_name, self.inline = Extents(node.extents), node.data, node.inline
            self.note_committed(node)

    def note_committed(self, node: Node) -> None:
        """This is the node now, as it was committed."""
        self.content, self.is_told = node.content, False
        self.named_end = Extents(node.extents).end if node.data and not node.inline else 0

    @property
    def is_changed(self) -> bool:
        return self.change != self.committed_change

    @property
    def is_rewritten(self) -> bool:
        """Whether the file was emptied (O_TRUNC) and not committed since: its record still has the content of before."""
        return self.emptied_change > self.committed_change

    def _file_locked(self) -> DurableFile:
        """The data, opened when it is first needed."""
        if self.file is None:
            if not self.data_name:
                self.data_name = self.new_name()
                self.inline = True
                self.file = MemoryFile(self.data_name)
            elif self.inline:
                self.file = MemoryFile(self.data_name, self.load_inline(self.data_name))
            else:
                self.file = self.tier.open(self.data_name)
                self.has_leftovers = True
        return self.file

    # --- Reading. ----------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> Buffer | Pieces:
        """Bytes of the range, cut at the end of the file; or `Pieces`, when some must come from the base."""
        with self.lock:
            size = min(size, self.size - offset)
            if size <= 0:
                return b""
            parts: list[Buffer | tuple[int, int]] = []
            from_base = False
            for start, length, stored in self.extents.pieces(offset, size):
                if stored:
                    parts.append(self._file_locked().read(start, length))
                    continue
                based = min(max(self.base_limit - start, 0), length)
                if based:
                    parts.append((start, based))
                    from_base = True
                if length > based:
                    parts.append(bytes(length - based))
            if from_base:
                assert self.base is not None
                return Pieces(self.base, tuple(parts))
        if len(parts) == 1:
            part = parts[0]
            assert not isinstance(part, tuple)
            return part
        return b"".join(bytes(part) for part in parts if not isinstance(part, tuple))

    # --- Changing. ---------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, mtime_ns: int) -> int:
        """Store all of `data` at `offset`, and return how many bytes more the draft has in the tier now."""
        size = len(data)
        if not size:
            return 0
        with self.lock:
            file = self._writable_locked(offset + size)
            self._disturb_locked(offset)  # before the bytes change: an upload may be reading them
            file.write(offset, data)
            added = size if offset >= self.extents.end else self.extents.missing(offset, size)
            self.extents.add(offset, offset + size)
            self.size = max(self.size, offset + size)
            self.mtime_ns = mtime_ns
            self.change += 1
            if self.base is None and len(self.extents) > MAX_EXTENTS:
                self._join_extents_locked(file)
            return added

    def append(self, data: Buffer, mtime_ns: int) -> int:
        """`write` at the end, wherever that is by now."""
        with self.lock:
            return self.write(self.size, data, mtime_ns)

    def truncate(self, size: int, mtime_ns: int) -> None:
        """Cut or lengthen. Where this cuts bytes that the committed node names, it must have been told (`OpenFiles.truncate`)."""
        file: DurableFile | None = None
        with self.lock:
            if size == 0 and self.size:
                # A new data file: the old one stays whole until the new content is committed.
                self._abandon_locked()
                self._disturb_locked(0)
                self.base, self.base_limit, self.extents = None, 0, Extents()
            elif size < self.size:
                file = self._file_locked() if self.extents.end > size else None
                self._disturb_locked(size)
                self.extents.cut(size)
                self.base_limit = min(self.base_limit, size)
            if self.watch is not None:
                self.watch.limit = min(self.watch.limit, size)
            self.size = size
            self.mtime_ns = mtime_ns
            self.change += 1
            if not size:
                self.emptied_change = self.change
            if file is not None:
                had_leftovers, self.has_leftovers = self.has_leftovers, True  # until the tier has cut them off
                file.truncate(size)
                self.has_leftovers = had_leftovers

    def cuts_data(self, size: int) -> bool:
        """Whether truncating to `size` takes bytes away from the data file itself."""
        with self.lock:
            return 0 < size < self.extents.end and not self.inline

    @property
    def is_fragmented(self) -> bool:
        """Whether the draft is cut into so many intervals over a base that gaps should be filled."""
        return self.base is not None and len(self.extents) > MAX_EXTENTS

    def gaps_to_fill(self) -> list[Gap]:
        """The smallest gaps of a fragmented draft."""
        with self.lock:
            if not self.is_fragmented:
                return []
            gaps = sorted(self.extents.gaps(), key=lambda gap: gap[1])[: MAX_EXTENTS // 2]
            return [Gap(offset, size, self.base, self.base_limit) for offset, size in gaps]

    def fill(self, gap: Gap, offset: int, data: Buffer) -> int:
        """Store what a part of a gap reads as, so that its neighbours become one interval; how many bytes that are.

        Nothing is stored if the gap may read differently by now.
        """
        end = offset + len(data)
        with self.lock:
            is_same = self.current(gap.base) == self.current(self.base) and gap.base_limit == self.base_limit
            if not is_same or end > self.size or self.extents.touches(offset, len(data)):
                return 0
            self._writable_locked(end).write(offset, data)
            self.extents.add(offset, end)
            self.change += 1
            return len(data)

    def _writable_locked(self, end: int) -> DurableFile:
        """The data, in a place where it may grow to `end`. Inline data that grows too large moves to a data file."""
        file = self._file_locked()
        if not isinstance(file, MemoryFile):
            return file
        if end <= self.inline_bytes:
            return file
        grown = self.tier.create(self.new_name())
        try:
            for start, stop in self.extents:
                grown.write(start, file.read(start, stop - start))
        except BaseException:
            grown.close()
            self.tier.delete(grown.name)
            raise
        self.file, self.data_name, self.inline = grown, grown.name, False
        return grown

    def _abandon_locked(self) -> None:
        if self.file is not None:
            self.abandoned.append(self.file)
        if self.data_name and not self.inline:
            self.replaced.append(self.data_name)
        self.file, self.data_name, self.inline, self.has_leftovers = None, "", False, False
        self.named_end = 0

    def _join_extents_locked(self, file: DurableFile) -> None:
        """Holes become stored zeros, which they are in the data file too, unless a predecessor left bytes there."""
        joined = Extents((0, self.extents.end))
        if self.has_leftovers:
            gaps = sorted([(0, self.extents.start), *self.extents.gaps()], key=lambda gap: gap[1])
            joined = self.extents
            for offset, size in gaps[: MAX_EXTENTS // 2]:
                for start in range(offset, offset + size, ZERO_BYTES):
                    file.write(start, bytes(min(ZERO_BYTES, offset + size - start)))
                joined.add(offset, offset + size)
        self.extents = joined

    def _disturb_locked(self, offset: int) -> None:
        if self.watch is not None and offset < self.watch.size:
            self.watch.disturbed = True

    # --- Committing. -------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """What a commit says now. The data must be synced (`sync_data`) between this and the commit."""
        with self.lock:
            inline = None
            file = self._file_locked() if self.inline else None
            if isinstance(file, MemoryFile):
                # Inline data is never changed in place: each commit writes it under a name of its own.
                inline = bytes(file.read(0, self.extents.end))
            return Snapshot(
                self.change, self.size, self.data_name, inline, self.extents.flat(), self.base, self.base_limit, self.mtime_ns
            )  # fmt: skip

    def sync_data(self) -> None:
        """Make what was written durable, if it is in a data file."""
        with self.lock:
            file = self.file
        if file is not None:
            file.sync()

    def committed(self, snapshot: Snapshot) -> list[str]:
        """A snapshot was committed: the data files that no record names any more."""
        with self.lock:
            self.committed_change = max(self.committed_change, snapshot.change)
            if self.is_changed:
                return []
            done, self.replaced = self.replaced, []
            self._close_abandoned_locked()
            return done

    def rebase(self) -> None:
        """Go on with what took the place of the base. It holds the same bytes wherever the extents do not say more."""
        with self.lock:
            self.base = self.current(self.base)

    def base_replaced(self, old: Remote, new: Remote) -> None:
        """`new` took the place of `old` in the under store. It may be a version that was there before: the etag of the same bytes is the same."""
        if old != new:
            self.rebased.pop(new, None)
            self.rebased[old] = new

    def current(self, base: Remote | None) -> Remote | None:
        """`base`, or what took its place."""
        while base is not None and base in self.rebased:
            base = self.rebased[base]
        return base

    def close(self) -> None:
        """Release the data. Only when nobody has a handle."""
        with self.lock:
            if self.file is not None:
                self.file.close()
                self.file = None
            self._close_abandoned_locked()

    def _close_abandoned_locked(self) -> None:
        for file in self.abandoned:
            file.close()
        self.abandoned.clear()


def draft_of(
    node: Node, tier: DurableTier, inline_bytes: int, new_name: Callable[[], str], load_inline: Callable[[str], bytes]
) -> Draft:
    """A draft that holds exactly what the node says."""
    draft = Draft(
        node_id=node.id, size=node.size, base=node.base, base_limit=node.base_limit, extents=Extents(node.extents),
        mtime_ns=node.mtime_ns, data_name=node.data, inline=node.inline, tier=tier, inline_bytes=inline_bytes,
        new_name=new_name, load_inline=load_inline,
    )  # fmt: skip
    draft.note_committed(node)
    return draft
