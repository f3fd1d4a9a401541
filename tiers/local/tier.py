"""A folder that is a tier: the public face of `tiers/local`.

Bytes that a tier serves are always those of the object version asked for, or there are none: each chunk carries a
checksum that proves which version and which place it belongs to, and is verified on every read. Whatever happens to
the folder (bits flip, files vanish, the process is killed, the disk fails) is a miss, counted, and costs a fetch.

Everything here is synchronous and may be called from any thread. Reads take no lock. Writes that find no room
evict first, in the thread that writes; there is no thread of the tier's own.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...errors import TierFailed, TierFull
from ..understore import Buffer
from ..version import CHUNK_BYTES, ObjectVersion
from . import extents as large
from . import slabs as small
from .block_slots import BlockSlots
from .entries import Entries, OnEvict
from .extent_files import BLOCK_CHUNKS, ExtentFiles
from .extent_recovery import ExtentRecovery
from .extents import Extents
from .files import BLOCK_UNIT_BYTES, OpenFile
from .folder import TierFolder
from .gate import Gate
from .health import Health
from .index import NOT_FOUND, block_parts, digest_of, is_block, small_parts
from .options import TierOptions
from .policy import EvictionPolicy
from .room import Room
from .slab_recovery import SlabRecovery
from .slabs import Slabs
from .space import Space


def never_pinned(digest: bytes) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class TierStats:
    """One tier at one moment. `used_bytes` is what its files allocate; `reason` says why it is out of service."""

    name: str
    folder: str
    capacity_bytes: int
    used_bytes: int
    entries: int
    files: int
    evicted: int
    evicted_bytes: int
    corrupt: int
    failures: int
    readable: bool
    writable: bool
    reason: str | None
    inodes_short: bool


@dataclass(frozen=True, slots=True)
class CachedEntry:
    """One entry: a whole small object, or what is present of one block. `offset` is where the block begins."""

    digest: bytes
    offset: int
    size_bytes: int


class LocalTier:
    """See the module. Open with `LocalTier.open`; the object owns the folder until `close`."""

    def __init__(
        self,
        options: TierOptions,
        policy: EvictionPolicy,
        pinned: Callable[[bytes], bool],
        on_evict: OnEvict | None,
        folder: TierFolder,
    ) -> None:
        """Use `open`."""
        self.options = options
        self._folder = folder
        self._gate = Gate()
        self._health = Health(options.name, options.folder, options.probe_interval_s)
        self._space = Space(options.folder, options.capacity_bytes, options.free_space_ratio)
        self._entries = Entries(policy, pinned)
        self._files = ExtentFiles(folder.extents, self._space, options.max_open_files // 6)
        self._block_slots = BlockSlots(folder.blocks, self._space)
        parts = (self._files, self._block_slots, self._entries, self._space, self._health)
        self._extents = Extents(*parts, self._gate)
        self._extent_recovery = ExtentRecovery(*parts)
        self._slabs = Slabs(
            folder.slabs, self._entries, self._space, self._health, self._gate, options.max_open_files // 2
        )

        self._slab_recovery = SlabRecovery(folder.slabs, self._slabs, self._entries, self._health)
        self._room = Room(
            options, self._entries, self._space, self._health, self._slabs, self._extents,
            self._slab_recovery, self._extent_recovery, on_evict,
        )  # fmt: skip

    @classmethod
    def open(
        cls,
        options: TierOptions,
        policy: EvictionPolicy,
        *,
        pinned: Callable[[bytes], bool] = never_pinned,
        on_evict: OnEvict | None = None,
    ) -> "LocalTier":
        """Lock the folder and find what is in it.

        `pinned(digest)` says whether an object version may not be evicted; it is called under the tier's lock, so it must
        be quick and not call the tier. `on_evict(version, offset, data)` gets what is about to be evicted, verified,
        in the thread that needed the room. Raises TierInUse, TierError (a newer format, a foreign folder) or TierFailed.
        """
        folder = TierFolder(options.folder, options.owner)
        try:
            tier = cls(options, policy, pinned, on_evict, folder)
            tier._recover()
        except OSError as error:
            folder.close()
            raise TierFailed(f"cannot use cache folder {options.folder}: {error}") from error
        except BaseException:
            folder.close()
            raise
        return tier

    # --- Reading. ---

    def read(
        self, version: ObjectVersion, offset: int, size: int, *, meanwhile: Callable[[], None] | None = None
    ) -> Buffer | None:
        """The bytes of the range, clipped at the object's end; None if any of them is not here. Never raises.

        Of a large object, `meanwhile` is called while the disk works; not if it is known before that bytes are missing."""
        if offset + size > version.size:
            size = version.size - offset
        if size <= 0:
            return b""
        if not self._health.readable and not self._probe():
            return None
        try:
            if version.is_small:
                return self._slabs.read(version, offset, size)
            return self._extents.read(version, offset, size, meanwhile)
        except OSError as error:
            self._unreadable(error, version, offset, size)
            return None

    def missing(self, version: ObjectVersion, offset: int, size: int) -> list[tuple[int, int]]:
        """The (offset, size) ranges to fetch so that the range is here: chunk-aligned (the end may be the object's),
        ascending, joined where they touch. All of a small object, or nothing. Never raises."""
        size = min(size, version.size - offset)
        if size <= 0:
            return []
        everything = [(0, version.size)]
        try:
            if version.is_small:
                return [] if self._health.readable and self._entries.find(version.digest) != NOT_FOUND else everything
            if self._health.readable:
                return self._extents.missing(version, offset, size)
        except OSError as error:
            self._health.read_failed(error)
        start = offset // CHUNK_BYTES * CHUNK_BYTES
        end = min(-(-(offset + size) // CHUNK_BYTES) * CHUNK_BYTES, version.size)
        return [(start, end - start)] if not version.is_small else everything

    def block_bytes(self, version: ObjectVersion) -> list[tuple[int, int]]:
        """(block index, bytes of it that are here), ascending, without blocks of which nothing is. Never raises."""
        if not self._health.readable:
            return []
        if version.is_small:
            held = version.size and self._entries.find(version.digest) != NOT_FOUND
            return [(0, version.size)] if held else []
        try:
            return self._extents.block_bytes(version)
        except OSError as error:
            self._health.read_failed(error)
            return []

    def present_blocks(self, version: ObjectVersion) -> list[int]:
        """Indexes of the blocks that are here as a whole, ascending. Never raises."""
        return [block for block, held in self.block_bytes(version) if held == version.block_range(block)[1]]

    def cached_bytes(self, version: ObjectVersion) -> int:
        """How many bytes of the object are here. Never raises."""
        return sum(held for _, held in self.block_bytes(version))

    def readahead(self, version: ObjectVersion, offset: int, size: int) -> None:
        """Start reading the range from the disk into the page cache, without waiting. Never raises."""
        if not self._health.readable:
            return
        try:
            if version.is_small:
                self._slabs.readahead(version)
            else:
                self._extents.readahead(version, offset, size)
        except OSError as error:
            self._health.read_failed(error)

    def data_file(self, version: ObjectVersion) -> OpenFile | None:
        """The sparse data file of a large object, bytes at the object's own offsets; None if there is none."""
        if version.is_small or not self._health.readable:
            return None
        try:
            return self._extents.data_file(version)
        except OSError as error:
            self._health.read_failed(error)
            return None

    # --- Changing. ---

    def write(self, version: ObjectVersion, offset: int, data: Buffer) -> None:
        """Bring bytes in. They are here, and verified on each read, once this returns.

        A small object comes whole. Of a large one `offset` is a multiple of CHUNK_BYTES, and so is the length, unless the
        range ends with the object. What is here already is not written again. Raises TierFull (no room and nothing to
        evict, or the policy admits nothing) or TierFailed (out of service); what was here before stays.
        """
        view = memoryview(data)
        _check_range(version, offset, len(view))
        if len(view) == 0:
            return
        with self._gate as is_open:
            if not is_open:
                raise TierFailed(f"the {self.options.name} tier at {self.options.folder} is closed")
            self._write(version, offset, view)

    def drop(self, version: ObjectVersion) -> int:
        """Take all of an object version out, pinned or not; the bytes of it that were here. Never raises."""
        with self._gate as is_open:
            if not is_open:
                return 0
            held = self.cached_bytes(version)
            try:
                if not version.is_small:
                    self._extents.drop(version)
                elif (row := self._entries.find(version.digest)) != NOT_FOUND:
                    self._slabs.drop(row)
            except OSError as error:
                self._room.disk_failed(error)
            return held

    def close(self) -> None:
        """Let the folder go; reading afterwards is a miss, writing is TierFailed. May be called twice."""
        if not self._gate.close():
            return
        self._health.close()
        with contextlib.suppress(OSError):  # then the next open looks at the names of all files
            self._block_slots.close()
        self._files.close()
        self._slabs.close()
        self._folder.close()

    # --- Seeing. ---

    @property
    def in_service(self) -> bool:
        """Whether reads are answered; does not try the disk. Of several folders, those out of service are passed over."""
        return self._health.readable

    @property
    def used_bytes(self) -> int:
        """What its files allocate now; cheap, as against `stats`."""
        return self._space.used_bytes

    def limit_bytes(self) -> int:
        """What it can hold in all: its capacity, or less where its disk has not so much. May walk over the neighbours' files."""
        limit = self._space.limit_bytes()
        if limit < self._space.capacity_bytes and self.options.neighbours is not None:
            limit = self._space.limit_bytes(self.options.neighbours.used_bytes())
        return limit

    def probe(self) -> bool:
        """Try a tier that is out of service, if it is time; whether it is in service. For whoever passes it over."""
        return self._health.readable or self._probe()

    def stats(self) -> TierStats:
        return TierStats(
            name=self.options.name,
            folder=str(self.options.folder),
            capacity_bytes=self.options.capacity_bytes,
            used_bytes=self._space.used_bytes,
            entries=len(self._entries),
            files=2 * self._extents.count + self._slabs.count,
            evicted=self._room.evicted,
            evicted_bytes=self._room.evicted_bytes,
            corrupt=self._health.corrupt,
            failures=self._health.failures,
            readable=self._health.readable,
            writable=self._health.writable,
            reason=self._health.reason,
            inodes_short=self._space.inodes_short,
        )

    def entries(self) -> Iterator[CachedEntry]:
        """All entries; several hundred thousand a second. What changes meanwhile may or may not be seen."""
        for first, second, location in self._entries.columns():
            rows = zip(first.tolist(), second.tolist(), location.tolist(), strict=True)
            for key_first, key_second, place in rows:
                if is_block(place):
                    block, chunks = block_parts(place)
                    start = block * BLOCK_CHUNKS * CHUNK_BYTES
                    yield CachedEntry(digest_of(key_first, key_second, block), start, chunks * CHUNK_BYTES)
                else:
                    yield CachedEntry(digest_of(key_first, key_second, 0), 0, small_parts(place)[2])

    def validate(self) -> None:
        """Recount everything from the files; AssertionError if an account is wrong. Nobody may be writing."""
        self._entries.validate()
        self._slab_recovery.validate()
        self._extent_recovery.validate(self._extents.count)
        assert self._space.reserved_bytes == 0
        actual = allocated_below(self._folder.slabs) + allocated_below(self._folder.extents)
        assert self._space.used_bytes >= actual, (self._space.used_bytes, actual)

    # --- Inside. ---

    def _unreadable(self, error: OSError, version: ObjectVersion, offset: int, size: int) -> None:
        """A read failed. What cannot be read is not here: it is dropped, so that it is fetched and written elsewhere."""
        if not self._health.read_failed(error):
            return
        with contextlib.suppress(OSError):
            if version.is_small:
                self._slabs.discard(version)
            else:
                self._extents.discard(version, offset, size)

    def _probe(self) -> bool:
        return not self._gate.closed and self._health.probe() and self._health.readable

    def _write(self, version: ObjectVersion, offset: int, view: memoryview) -> None:
        self._health.check_writable()
        self._room.reclaim()
        small_object = version.is_small
        if small_object and self._entries.find(version.digest) != NOT_FOUND:
            return
        need = small.write_need_bytes(version) if small_object else large.write_need_bytes(version, len(view))
        self._room.reserve(need)
        try:
            if small_object:
                self._write_small(version, view)
            else:
                self._room.require_inodes(version)
                self._extents.write(version, offset, view)
        except OSError as error:
            raise self._room.disk_failed(error) from error
        finally:
            self._space.settle(need, 0)

    def _write_small(self, version: ObjectVersion, view: memoryview) -> None:
        row = self._entries.begin(version.digest, 0, len(view))
        if row is None:
            raise TierFull("the eviction policy keeps what is cached and admits nothing new")
        try:
            location = self._slabs.write(version, view)
        except BaseException:
            self._entries.abandon(row)
            raise
        if not self._entries.publish(row, version.digest, 0, location):
            self._entries.abandon(row)
            self._slabs.forget_write(location)

    def _recover(self) -> None:
        for path in (self._folder.path, self._folder.slabs, self._folder.extents):
            self._space.settle(0, os.stat(path).st_blocks * BLOCK_UNIT_BYTES)
        self._slab_recovery.recover()
        self._extents.count = self._extent_recovery.recover()
        self._room.shrink()


def _check_range(version: ObjectVersion, offset: int, size: int) -> None:
    """Refuse what a caller may never do: bytes outside of the object, or chunks that are cut."""
    end = offset + size
    if offset < 0 or end > version.size:
        raise ValueError(f"bytes {offset} to {end} of an object of {version.size} bytes")
    if version.is_small:
        if size != version.size:
            raise ValueError(f"{size} bytes of a small object of {version.size} bytes: it is cached whole")
    elif offset % CHUNK_BYTES or (end % CHUNK_BYTES and end != version.size):
        raise ValueError(f"bytes {offset} to {end} do not begin and end with a chunk of {CHUNK_BYTES} bytes")


def allocated_below(folder: os.PathLike[str]) -> int:
    """What a folder and all below it allocate on their file system, in bytes."""
    total = 0
    for parent, _, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            total += os.lstat(path).st_blocks * BLOCK_UNIT_BYTES
    return total
