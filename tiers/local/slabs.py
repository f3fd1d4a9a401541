"""Small objects: appended to slabs, read whole or in part, evicted by punching holes.

A slab is only appended to. Evicting an object sets the flag in its record and gives the pages of its frame back; a
page that it shares with neighbours goes with the last of them. Where much is dead and little could be given back
(objects smaller than a page), the slab is *compacted*: the living move to the end of the newest slab.
"""

import contextlib
import errno
import os
import struct
import threading
from pathlib import Path

import numpy as np

from ..understore import Buffer
from ..version import CHUNK_BYTES, ObjectVersion
from . import slab_file as fmt
from .checksum import piece_sums, seed_of
from .entries import Entries, OnEvict, Victim
from .files import OpenCache, OpenFile, Recent, remove
from .gate import Gate
from .health import Health
from .index import MAX_SLAB_NUMBER, NOT_FOUND, SLAB_UNIT_BYTES, digest_of, small_location, small_parts
from .slab_table import SlabTable
from .space import Space

# Objects up to this size are read whole even if a part is wanted: one read instead of two.
READ_WHOLE_BYTES = 128 * 1024
# Beyond a frame: a page on either side, record page, file system's own block.
_WRITE_SLACK_BYTES = 16 * 1024
# A new slab's header, its first records and the folder's growth.
_CREATE_SLACK_BYTES = 24 * 1024
# Slabs of which less than this part is allocated are emptied when there are more than twice as many as needed.
_SPARSE_PART = 4
_SLABS_PER_TIER = 16
_MIN_SLAB_BYTES = 2 * 1024 * 1024
_DEAD = struct.pack("<H", fmt.DEAD)


class SlabHandle(Recent):
    """The open file of a slab."""

    __slots__ = ("file",)

    def __init__(self, file: OpenFile) -> None:
        super().__init__()
        self.file = file


class Slab:
    """What is known of one slab. `lock` guards everything here but not its reads."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.lock = threading.Lock()
        self.end = fmt.FRAMES_OFFSET  # where the next frame goes
        self.records = 0  # number of the next record
        self.writing = 0  # frames that were given out and not yet recorded
        self.live = 0
        self.live_bytes = 0  # of frames without their identities
        self.allocated = 0


class Slabs:
    """All small objects of a tier."""

    def __init__(self, folder: Path, entries: Entries, space: Space, health: Health, gate: Gate, max_open: int) -> None:
        self._folder = folder
        # In a small tier slabs are shorter, so that most of them are not the one that is being filled.
        self._slab_bytes = fmt.FRAMES_OFFSET + min(
            fmt.SLAB_BYTES - fmt.FRAMES_OFFSET, max(space.capacity_bytes // _SLABS_PER_TIER, _MIN_SLAB_BYTES)
        )
        self._entries = entries
        self._space = space
        self._health = health
        self._gate = gate
        self._open: OpenCache[int, SlabHandle] = OpenCache(max_open)
        self._lock = threading.Lock()
        self._slabs: dict[int, Slab] = {}
        self._active: Slab | None = None
        self._thinned: set[int] = set()  # numbers; added to and taken from by single operations, so without a lock

    @property
    def count(self) -> int:
        return len(self._slabs)

    # --- Reading. ---

    def read(self, version: ObjectVersion, offset: int, size: int) -> Buffer | None:
        """The verified bytes, or None. The range is inside the object and not empty. Raises OSError."""
        row = self._entries.find(version.digest)
        while row != NOT_FOUND and not self._gate.closed:
            location = self._entries.location(row)
            number, start, _ = small_parts(location)
            handle = self._open.get(number) or self.open(number)
            if handle is not None:
                data = _read_frame(handle.file, start, version, offset, size)
                if data is not None:
                    self._entries.hit(row)
                    return data
            # It did not verify. Still said to be there: damage. Elsewhere: a compaction moved it a moment ago.
            self._discard(version, row, location)
            row = self._entries.find(version.digest)
        return None

    def discard(self, version: ObjectVersion) -> None:
        """Drop an object whose bytes cannot be read. Raises OSError after its entry is out."""
        row = self._entries.find(version.digest)
        if row != NOT_FOUND:
            self._discard(version, row, self._entries.location(row))

    def _discard(self, version: ObjectVersion, row: int, location: int) -> None:
        with self._gate as is_open:
            if is_open and self._entries.remove(row, location):
                self._health.found_corrupt(f"small object {version.key!r}")
                self.free([Victim(row, location, version.digest, 0)], None)

    def readahead(self, version: ObjectVersion) -> None:
        row = self._entries.find(version.digest)
        if row != NOT_FOUND:
            number, start, _ = small_parts(self._entries.location(row))
            handle = self._open.get(number)
            if handle is not None:
                os.posix_fadvise(handle.file.fd, start, fmt.frame_bytes(version.size, 0), os.POSIX_FADV_WILLNEED)

    # --- Changing. ---

    def write(self, version: ObjectVersion, data: memoryview) -> int:
        """Append the object; returns its location, which the caller publishes. Raises OSError."""
        head, who = fmt.pack_frame(version, data)
        size = len(head) + len(data) + len(who)
        slab, offset, record = self._allocate(size)
        written = False
        try:
            handle = self.open(slab.number)
            if handle is None:
                raise FileNotFoundError(errno.ENOENT, "the slab is gone", str(slab.path))
            handle.file.write_at([head, data, who], offset)
            handle.file.write_at(
                [fmt.pack_record(version.digest, offset, version.size, len(who))],
                fmt.RECORDS_OFFSET + record * fmt.RECORD_BYTES,
            )
            written = True
        finally:
            with slab.lock:
                slab.writing -= 1
                if written:
                    slab.live += 1
                    slab.live_bytes += fmt.frame_bytes(version.size, 0)
                self.measure_locked(slab)
                if slab.allocated == 0:  # deleted underneath: what is written there is seen by nobody
                    slab.end = fmt.SLAB_BYTES
        return small_location(slab.number, offset, version.size)

    def forget_write(self, location: int) -> None:
        """The object of a write that nobody wants any more (somebody else was faster) is dead again."""
        number, offset, size = small_parts(location)
        self.kill(number, {offset: size})

    def drop(self, row: int) -> None:
        """Take one object out. Raises OSError after its entry is out."""
        location = self._entries.location(row)
        if self._entries.remove(row, location):
            self.free([Victim(row, location, b"", 0)], None)

    def free(self, removed: list[Victim], on_evict: OnEvict | None) -> None:
        """Free the bytes of entries that were removed. Raises OSError after all of them were tried and released."""
        by_slab: dict[int, dict[int, int]] = {}
        for victim in removed:
            number, offset, size = small_parts(victim.location)
            by_slab.setdefault(number, {})[offset] = size
        try:
            if on_evict is not None:
                for victim in removed:
                    if (found := self.frame(victim)) is not None:
                        on_evict(found[0], 0, found[1])
        finally:
            with contextlib.ExitStack() as stack:
                for victim in removed:
                    stack.callback(self._entries.release, victim.row)
                for number, frames in by_slab.items():
                    stack.callback(self.kill, number, frames)

    def frame(self, victim: Victim) -> tuple[ObjectVersion, memoryview] | None:
        """The verified object of an entry, with its identity; None if it is damaged or gone."""
        number, offset, size = small_parts(victim.location)
        handle = self.open(number)
        if handle is None:
            return None
        head = os.pread(handle.file.fd, fmt.FRAME_HEAD_BYTES, offset)
        if len(head) < fmt.FRAME_HEAD_BYTES:
            return None
        identity_bytes = int.from_bytes(head[4:8], "little")
        frame = os.pread(handle.file.fd, fmt.frame_bytes(size, min(identity_bytes, 0xFFFF)), offset)
        return fmt.unpack_frame(frame, victim.digest)

    # --- For compaction and recovery. ---

    def all(self) -> list[Slab]:
        """The slabs of this moment, oldest number first."""
        with self._lock:
            return sorted(self._slabs.values(), key=lambda slab: slab.number)

    def adopt(self, slab: Slab) -> None:
        """Take in a slab that was found on disk, and account for it."""
        self._slabs[slab.number] = slab
        self._thinned.add(slab.number)
        self._space.settle(0, slab.allocated)

    def go_on_with_the_newest(self) -> None:
        """After a restart: append to the last slab if there is room in it, so that restarts do not leave short ones."""
        newest = max(self._slabs.values(), key=lambda slab: slab.number, default=None)
        if newest is not None and newest.end < self._slab_bytes and newest.records < fmt.MAX_RECORDS:
            self._active = newest

    def thinned(self) -> list[Slab]:
        """Slabs in which something died since they were last found to be dense: all that can be worth compacting."""
        return [slab for number in list(self._thinned) if (slab := self._slabs.get(number)) is not None]

    def is_dense(self, slab: Slab) -> None:
        """The slab need not be looked at before something dies in it again."""
        self._thinned.discard(slab.number)

    def is_active(self, slab: Slab) -> bool:
        """Whether the slab is the one that is being filled."""
        return slab is self._active

    def sparse_bytes(self) -> int:
        """Slabs that allocate less are too empty; 0 as long as there are not too many slabs."""
        too_many = len(self._slabs) > 2 * (self._space.capacity_bytes // self._slab_bytes) + _SLABS_PER_TIER
        return (self._slab_bytes - fmt.FRAMES_OFFSET) // _SPARSE_PART if too_many else 0

    def living(self, slab: Slab) -> list[Victim]:
        """The entries whose bytes are in this slab, in the order of their place."""
        handle = self.open(slab.number)
        if handle is None:
            return []
        records = fmt.read_records(handle.file)
        records = records[fmt.verify_records(records) & (records["flag"] == fmt.LIVE)]
        found = []
        for first, second, unit, size in np.sort(records, order="unit")[["first", "second", "unit", "size"]].tolist():
            digest = digest_of(first, second, 0)
            location = small_location(slab.number, unit * SLAB_UNIT_BYTES, size)
            row = self._entries.find(digest)
            if row != NOT_FOUND and self._entries.location(row) == location:
                found.append(Victim(row, location, digest, 0))
        return found

    def close(self) -> None:
        self._open.clear()

    # --- Inside. ---

    def open(self, number: int) -> SlabHandle | None:
        """The open file of a slab; None if there is no such slab (any more). Raises OSError."""
        handle = self._open.get(number)
        slab = self._slabs.get(number) if handle is None else None
        if slab is None:
            return handle
        try:
            handle = SlabHandle(OpenFile(slab.path))
        except FileNotFoundError:
            return None
        self._open.put(number, handle)
        return handle

    def _allocate(self, size: int) -> tuple[Slab, int, int]:
        """A place for a frame in the active slab, or in a new one: (slab, offset, number of the record)."""
        with self._lock:
            slab = self._active
            if slab is not None:
                place = self._place(slab, size)
                if place is not None:
                    return slab, *place
            slab = self._new_slab_locked()
            filled, self._active = self._active, slab
            place = self._place(slab, size)
            assert place is not None, "a frame fits into an empty slab"
        if filled is not None:
            self.remove_if_empty(filled)
        return slab, *place

    def _place(self, slab: Slab, size: int) -> tuple[int, int] | None:
        with slab.lock:
            offset = slab.end
            if size >= fmt.PAGE_ALIGNED_FROM_BYTES:
                offset = -(-offset // fmt.PAGE_BYTES) * fmt.PAGE_BYTES
            if offset + size > self._slab_bytes or slab.records >= fmt.MAX_RECORDS:
                return None
            slab.end = fmt.align(offset + size)
            slab.records += 1
            slab.writing += 1
            return offset, slab.records - 1

    def _new_slab_locked(self) -> Slab:
        number = max(self._slabs, default=0) + 1
        if number > MAX_SLAB_NUMBER:
            number = next(n for n in range(1, MAX_SLAB_NUMBER) if n not in self._slabs)
        slab = Slab(number, self._folder / f"{number:07d}.slab")
        file = OpenFile(slab.path, os.O_CREAT | os.O_TRUNC)
        file.write_at([fmt.pack_slab_header(number)], 0)
        with slab.lock:
            self.measure_locked(slab)
        self._slabs[number] = slab
        self._open.put(number, SlabHandle(file))
        return slab

    def measure_locked(self, slab: Slab) -> None:
        """Take over what the file system says that the slab allocates."""
        try:
            now = slab.path.stat().st_blocks * 512
        except FileNotFoundError:
            now = 0
        self._space.settle(0, now - slab.allocated)
        slab.allocated = now

    def kill(self, number: int, frames: dict[int, int]) -> None:
        """Flag the records of these frames (offset: size of the object) dead, give their pages back, and remove the slab
        with its last object. Each frame is killed once, by whoever took its entry out. Raises OSError."""
        slab = self._slabs.get(number)
        if slab is None or not frames:
            return
        with slab.lock:
            slab.live -= len(frames)
            slab.live_bytes -= sum(fmt.frame_bytes(size, 0) for size in frames.values())
            try:
                handle = self.open(number)
                if handle is not None:
                    table = SlabTable(fmt.read_records(handle.file))
                    for offset in frames:
                        record = table.kill(offset)
                        if record is not None:
                            self.flag_dead(handle, record)
                    for start, size in table.holes(frames, quiet=slab.writing == 0):
                        handle.file.punch(start, size)
            finally:
                self.measure_locked(slab)
                self._thinned.add(number)
        self.remove_if_empty(slab)

    @staticmethod
    def flag_dead(handle: SlabHandle, record: int) -> None:
        handle.file.write_at([_DEAD], fmt.RECORDS_OFFSET + record * fmt.RECORD_BYTES + fmt.FLAG_OFFSET)

    def remove_if_empty(self, slab: Slab) -> None:
        with self._lock, slab.lock:
            if slab.live or slab.writing or self._slabs.get(slab.number) is not slab:
                return
            if self._active is slab:
                return
            del self._slabs[slab.number]
            self._thinned.discard(slab.number)
            self._open.pop(slab.number)
            remove(slab.path)
            self.measure_locked(slab)


def _read_frame(file: OpenFile, start: int, version: ObjectVersion, offset: int, size: int) -> memoryview | None:
    """The range of the object whose frame begins at `start`, verified; None if what is there is something else."""
    whole = version.size
    body = fmt.data_offset(whole)
    if size >= whole or whole <= READ_WHOLE_BYTES:
        frame = os.pread(file.fd, body + whole, start)
        data = memoryview(frame)[body:]
        sums, first, expected = frame[fmt.FRAME_HEAD_BYTES : body], 0, whole
    else:
        first = offset // CHUNK_BYTES
        count = (offset + size - 1) // CHUNK_BYTES + 1 - first
        expected = min(count * CHUNK_BYTES, whole - first * CHUNK_BYTES)
        sums = os.pread(file.fd, 8 * count, start + fmt.FRAME_HEAD_BYTES + 8 * first)
        data = memoryview(os.pread(file.fd, expected, start + body + first * CHUNK_BYTES))
    if len(data) != expected or piece_sums(seed_of(version.digest), first, data) != sums:
        return None
    skip = offset - first * CHUNK_BYTES
    return data[skip : skip + size]


def write_need_bytes(version: ObjectVersion) -> int:
    """An upper bound of what writing this object can allocate."""
    return version.size + _sums_and_identity_bytes(version) + _WRITE_SLACK_BYTES + _CREATE_SLACK_BYTES


def _sums_and_identity_bytes(version: ObjectVersion) -> int:
    # A character of a key takes at most 4 bytes as UTF-8.
    texts = 4 * (len(version.store) + len(version.key) + len(version.etag) + len(version.version_id or ""))
    return fmt.frame_bytes(version.size, texts + 64) - version.size
