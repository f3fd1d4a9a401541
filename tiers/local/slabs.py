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
from .checksum import chunk_sums, pack_sums, seed_of
from .entries import Entries, OnEvict, Victim
from .files import OpenCache, OpenFile, Recent, remove
from .gate import Gate
from .health import Health
from .index import MAX_SLAB_NUMBER, NOT_FOUND, SLAB_UNIT_BYTES, digest_of, small_location, small_parts, unique_keys
from .slab_table import SlabTable
from .space import Space

# Objects up to this size are read whole even if a part is wanted: one read instead of two.
READ_WHOLE_BYTES = 128 * 1024
# Beyond a frame: a page on either side, record page, file system's own block.
_WRITE_SLACK_BYTES = 16 * 1024
# A new slab's header, its first records and the folder's growth.
_CREATE_SLACK_BYTES = 24 * 1024
# A slab is compacted when less than this part of what it allocates lives: moving 3 bytes then gives 1 back. Lower would
# cost less work and leave more of the tier to the dead.
_COMPACT_BELOW = 0.75
_COMPACT_MIN_BYTES = 512 * 1024
# Slabs of which less than this part is allocated are emptied when there are more than twice as many as needed.
_SPARSE_PART = 4
# Moved between two holes (bounds the room that it takes), and by one call (bounds how long a writer is held up).
_MOVE_GROUP_BYTES = 512 * 1024
_MOVE_MOST_BYTES = 32 * 1024 * 1024
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
            handle = self._open.get(number) or self._open_slab(number)
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
            handle = self._open.get(slab.number) or self._open_slab(slab.number)
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
                self._measure_locked(slab)
                if slab.allocated == 0:  # deleted underneath: what is written there is seen by nobody
                    slab.end = fmt.SLAB_BYTES
        return small_location(slab.number, offset, version.size)

    def forget_write(self, location: int) -> None:
        """The object of a write that nobody wants any more (somebody else was faster) is dead again."""
        number, offset, size = small_parts(location)
        self._kill(number, {offset: size})

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
                    if (found := self._frame(victim)) is not None:
                        on_evict(found[0], 0, found[1])
        finally:
            with contextlib.ExitStack() as stack:
                for victim in removed:
                    stack.callback(self._entries.release, victim.row)
                for number, frames in by_slab.items():
                    stack.callback(self._kill, number, frames)

    def _frame(self, victim: Victim) -> tuple[ObjectVersion, memoryview] | None:
        """The verified object of an entry, with its identity; None if it is damaged or gone."""
        number, offset, size = small_parts(victim.location)
        handle = self._open.get(number) or self._open_slab(number)
        if handle is None:
            return None
        head = os.pread(handle.file.fd, fmt.FRAME_HEAD_BYTES, offset)
        if len(head) < fmt.FRAME_HEAD_BYTES:
            return None
        identity_bytes = int.from_bytes(head[4:8], "little")
        frame = os.pread(handle.file.fd, fmt.frame_bytes(size, min(identity_bytes, 0xFFFF)), offset)
        return fmt.unpack_frame(frame, victim.digest)

    # --- Compaction. ---

    def compact(self) -> bool:
        """Move what lives in the slab with the smallest living part, so that its pages can go; at most
        `_MOVE_MOST_BYTES` at a time. False if no slab is worth it, or there is no room to move into. Raises OSError."""
        slab = self._worst_slab()
        if slab is None:
            return False
        moved_bytes = group_bytes = 0
        group: dict[int, int] = {}
        for victim in self._living(slab):
            _, offset, size = small_parts(victim.location)
            frame = self._frame(victim)
            if frame is None:
                if not self._entries.remove(victim.row, victim.location):
                    continue
                self._health.found_corrupt(f"an object in {slab.path.name}")
                self._entries.release(victim.row)
            else:
                location = self._write_copy(*frame)
                if location is None:
                    break
                if not self._entries.relocate(victim.row, victim.location, location):
                    self.forget_write(location)  # somebody took it out meanwhile
                    continue
            group[offset] = size
            group_bytes += size
            if group_bytes >= _MOVE_GROUP_BYTES:
                self._kill(slab.number, group)
                moved_bytes += group_bytes
                group, group_bytes = {}, 0
                if moved_bytes >= _MOVE_MOST_BYTES:
                    break
        self._kill(slab.number, group)
        return moved_bytes + group_bytes > 0

    def _worst_slab(self) -> Slab | None:
        """The slab to compact: much of what it allocates is dead, or it is one of too many that are nearly empty."""
        too_many = len(self._slabs) > 2 * (self._space.capacity_bytes // self._slab_bytes) + _SLABS_PER_TIER
        sparse_bytes = (self._slab_bytes - fmt.FRAMES_OFFSET) // _SPARSE_PART if too_many else 0
        worst, worst_part = None, _COMPACT_BELOW
        with self._lock:
            for slab in self._slabs.values():
                if slab is self._active or slab.writing or not slab.allocated:
                    continue
                part = slab.live_bytes / slab.allocated if slab.allocated > _COMPACT_MIN_BYTES else 1.0
                if slab.allocated < sparse_bytes:
                    part = min(part, slab.allocated / self._slab_bytes)
                if part < worst_part:
                    worst, worst_part = slab, part
        return worst

    def _living(self, slab: Slab) -> list[Victim]:
        """The entries whose bytes are in this slab, in the order of their place."""
        handle = self._open.get(slab.number) or self._open_slab(slab.number)
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

    def _write_copy(self, version: ObjectVersion, data: memoryview) -> int | None:
        """Append an object that is here already; None if there is no room for two of it."""
        need = write_need_bytes(version)
        if not self._space.try_reserve(need, spare=True):
            return None
        try:
            return self.write(version, data)
        finally:
            self._space.settle(need, 0)

    # --- Restart. ---

    def recover(self) -> None:
        """Find the slabs and what lives in them, oldest first. Damaged slabs are removed."""
        firsts, seconds, locations, sizes = [], [], [], []
        for path in sorted(self._folder.glob("*.slab")):
            slab = self._recover_slab(path)
            if slab is None:
                continue
            self._slabs[slab.number] = slab
            self._space.settle(0, slab.allocated)
            handle = self._open.get(slab.number) or self._open_slab(slab.number)
            if handle is None:
                continue
            records = fmt.read_records(handle.file)
            whole = fmt.verify_records(records)
            written = records["unit"] != 0
            damaged = int((written & ~whole).sum())
            if damaged:
                self._health.found_corrupt(f"{damaged} records of {path.name}", damaged)
            good = records[whole]
            slab.records = len(records)
            if len(good):
                ends = good["unit"].astype(np.int64) * SLAB_UNIT_BYTES + fmt.frame_sizes(good)
                slab.end = fmt.align(int(ends.max()))
            living = good[good["flag"] == fmt.LIVE]
            if not len(living):
                self._remove_if_empty(slab)
                continue
            slab.live = len(living)
            slab.live_bytes = int((fmt.frame_sizes(living) - living["identity"]).sum())
            firsts.append(living["first"])
            seconds.append(living["second"])
            locations.append(
                np.uint64(slab.number << 43)
                | living["unit"].astype(np.uint64) << np.uint64(21)
                | living["size"].astype(np.uint64)
            )
            sizes.append(living["size"].astype(np.int64))
        if not firsts:
            return
        first, second = np.concatenate(firsts), np.concatenate(seconds)
        location, size = np.concatenate(locations), np.concatenate(sizes)
        # An object that was written twice (a crash before the first was flagged dead) is kept once.
        kept = unique_keys(first, second)
        if kept is not None:
            for twin in np.setdiff1d(np.arange(len(first)), kept).tolist():
                number, offset, length = small_parts(int(location[twin]))
                self._kill(number, {offset: length})
            first, second, location, size = first[kept], second[kept], location[kept], size[kept]
        self._entries.restore(first, second, location, size)
        newest = max(self._slabs.values(), key=lambda slab: slab.number, default=None)
        if newest is not None and newest.end < self._slab_bytes and newest.records < fmt.MAX_RECORDS:
            self._active = newest

    def reclaim(self) -> None:
        """Free what a failed write or eviction left behind: frames that no entry points to. Raises OSError."""
        for slab in list(self._slabs.values()):
            with slab.lock:
                handle = self._open.get(slab.number) or self._open_slab(slab.number)
                if handle is None or slab.writing:
                    continue
                living = {small_parts(victim.location)[1] for victim in self._living(slab)}
                if len(living) != slab.live:
                    continue  # one was written a moment ago and its entry is not published yet: it is no left-over
                records = fmt.read_records(handle.file)
                table = SlabTable(records)
                dead: dict[int, int] = {}
                for record, (unit, size) in enumerate(records[["unit", "size"]].tolist()):
                    offset = unit * SLAB_UNIT_BYTES
                    if unit and offset not in living:
                        dead[offset] = size
                        if table.kill(offset) is not None:
                            self._flag_dead(handle, record)
                try:
                    for start, length in table.holes(dead, quiet=True):
                        handle.file.punch(start, length)
                finally:
                    self._measure_locked(slab)
            self._remove_if_empty(slab)

    def validate(self) -> None:
        """Recount what lives in each slab and what it allocates; nobody may be writing."""
        for slab in list(self._slabs.values()):
            low, high = slab.number << 43, (slab.number + 1) << 43
            assert slab.writing == 0
            assert slab.live == len(self._entries.rows_where(low, high)), (slab.number, slab.live)
            if slab.path.exists():
                assert slab.allocated == slab.path.stat().st_blocks * 512, slab.path

    def allocated(self) -> int:
        return sum(slab.allocated for slab in list(self._slabs.values()))

    def close(self) -> None:
        self._open.clear()

    # --- Inside. ---

    def _recover_slab(self, path: Path) -> Slab | None:
        try:
            number = int(path.stem)
            file = OpenFile(path)
        except (ValueError, OSError):
            return None
        head = os.pread(file.fd, fmt.SLAB_HEADER_BYTES, 0)
        if not 0 < number <= MAX_SLAB_NUMBER or not fmt.is_slab_header(head, number):
            if head:  # an empty file was being made when we stopped
                self._health.found_corrupt(f"the header of {path.name}")
            remove(path)
            return None
        slab = Slab(number, path)
        slab.allocated = file.allocated()
        self._open.put(number, SlabHandle(file))
        return slab

    def _open_slab(self, number: int) -> SlabHandle | None:
        slab = self._slabs.get(number)
        if slab is None:
            return None
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
            self._remove_if_empty(filled)
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
            self._measure_locked(slab)
        self._slabs[number] = slab
        self._open.put(number, SlabHandle(file))
        return slab

    def _measure_locked(self, slab: Slab) -> None:
        """Take over what the file system says that the slab allocates."""
        try:
            now = slab.path.stat().st_blocks * 512
        except FileNotFoundError:
            now = 0
        self._space.settle(0, now - slab.allocated)
        slab.allocated = now

    def _kill(self, number: int, frames: dict[int, int]) -> None:
        """Flag the records of these frames (offset: size of the object) dead, give their pages back, and remove the slab
        with its last object. Each frame is killed once, by whoever took its entry out. Raises OSError."""
        slab = self._slabs.get(number)
        if slab is None or not frames:
            return
        with slab.lock:
            slab.live -= len(frames)
            slab.live_bytes -= sum(fmt.frame_bytes(size, 0) for size in frames.values())
            try:
                handle = self._open.get(number) or self._open_slab(number)
                if handle is not None:
                    table = SlabTable(fmt.read_records(handle.file))
                    for offset in frames:
                        record = table.kill(offset)
                        if record is not None:
                            self._flag_dead(handle, record)
                    for start, size in table.holes(frames, quiet=slab.writing == 0):
                        handle.file.punch(start, size)
            finally:
                self._measure_locked(slab)
        self._remove_if_empty(slab)

    @staticmethod
    def _flag_dead(handle: SlabHandle, record: int) -> None:
        handle.file.write_at([_DEAD], fmt.RECORDS_OFFSET + record * fmt.RECORD_BYTES + fmt.FLAG_OFFSET)

    def _remove_if_empty(self, slab: Slab) -> None:
        with self._lock, slab.lock:
            if slab.live or slab.writing or self._slabs.get(slab.number) is not slab:
                return
            if self._active is slab:
                return
            del self._slabs[slab.number]
            self._open.pop(slab.number)
            remove(slab.path)
            self._measure_locked(slab)


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
    if len(data) != expected or pack_sums(chunk_sums(seed_of(version.digest), first, data)) != sums:
        return None
    skip = offset - first * CHUNK_BYTES
    return data[skip : skip + size]


def write_need_bytes(version: ObjectVersion) -> int:
    """An upper bound of what writing this object can allocate."""
    return version.size + sums_and_identity_bytes(version) + _WRITE_SLACK_BYTES + _CREATE_SLACK_BYTES


def sums_and_identity_bytes(version: ObjectVersion) -> int:
    # A character of a key takes at most 4 bytes as UTF-8.
    texts = 4 * (len(version.store) + len(version.key) + len(version.etag) + len(version.version_id or ""))
    return fmt.frame_bytes(version.size, texts + 64) - version.size
