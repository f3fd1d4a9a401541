"""Large objects at restart, and after trouble: what is in the folder, and what nobody accounts for.

A restart reads the table of blocks and opens the files of unsettled blocks only. Files that the table does not know,
which can only be there after a power failure or if the table was damaged, are opened one by one.
"""

import numpy as np

from ..version import CHUNK_BYTES
from .block_slots import SETTLED, BlockSlots, LoadedSlots
from .entries import Entries
from .extent_files import BLOCK_ENTRIES_BYTES, HEADER_UNIT_BYTES, Extent, ExtentFiles
from .health import Health
from .index import NOT_FOUND, block_location, block_locations, block_parts, digest_of, first_keys, key_of, unique_keys
from .space import Space

# What a file may allocate beyond its known blocks without being looked at: the file system's own blocks.
_SLACK_BYTES = 64 * 1024
# An odd constant to make one number of a digest, where a rare mix-up only costs an account a page.
_MIX = 0x9E3779B97F4A7C15


class ExtentRecovery:
    """Finds and recounts; used while nobody else reads or writes, but for `reclaim`."""

    def __init__(self, files: ExtentFiles, slots: BlockSlots, entries: Entries, space: Space, health: Health) -> None:
        self._files = files
        self._slots = slots
        self._entries = entries
        self._space = space
        self._health = health
        self._count = 0

    def recover(self) -> int:
        """Bring all blocks into the index and all bytes into the account; the number of objects. Raises OSError."""
        loaded = self._slots.load()
        if loaded.damaged:
            self._health.found_corrupt("the table of blocks: all extent files are opened")
        known = self._restore_settled(loaded)
        self._settle_rest(loaded)
        if not loaded.complete:
            self._adopt_unknown(known)
        self._space.settle(0, self._files.folders_allocated())
        return self._count

    def _restore_settled(self, loaded: LoadedSlots) -> dict[bytes, int]:
        """Settled blocks, all at once; what the data files of each object are said to allocate, if that will be needed."""
        settled = loaded.slots["state"] == SETTLED
        slots, numbers = loaded.slots[settled], loaded.numbers[settled]
        block, chunks = slots["block"].astype(np.uint64), slots["chunks"].astype(np.uint64)
        first, second = first_keys(slots["first"], block), slots["second"]
        kept = unique_keys(first, second)
        if kept is not None:
            for twin in np.setdiff1d(np.arange(len(slots)), kept).tolist():
                self._slots.clear(int(numbers[twin]))
            slots, numbers, block, chunks = slots[kept], numbers[kept], block[kept], chunks[kept]
            first, second = first[kept], second[kept]
        location = block_locations(block, numbers.astype(np.uint64), chunks)
        self._entries.restore(first, second, location, chunks.astype(np.int64) * CHUNK_BYTES)
        objects = slots["first"] ^ slots["second"] * np.uint64(_MIX)
        self._count = len(np.unique(objects))
        # Too much for maps of format 1, whose entries take an eighth; never too little.
        map_bytes = HEADER_UNIT_BYTES * self._count + BLOCK_ENTRIES_BYTES * len(objects)
        self._space.settle(0, int(slots["allocated"].sum(dtype=np.int64)) + map_bytes)
        if loaded.complete:
            return {}
        known: dict[bytes, int] = {}
        for low, high, allocated in slots[["first", "second", "allocated"]].tolist():
            digest = digest_of(low, high, 0)
            known[digest] = known.get(digest, 0) + allocated
        return known

    def _settle_rest(self, loaded: LoadedSlots) -> None:
        """Count the blocks again that were being changed when the process was killed."""
        rest = loaded.slots["state"] != SETTLED
        named = loaded.slots[rest][["first", "second", "block"]].tolist()
        for number, (low, high, block) in zip(loaded.numbers[rest].tolist(), named, strict=True):
            digest = digest_of(low, high, 0)
            with self._files.lock(digest):
                extent = self._files.open_locked(digest)
                if extent is not None and block < extent.version.block_count:
                    extent.trim(block)
                    is_new = self._entries.find(digest, block) == NOT_FOUND
                    if is_new and self._adopt_block_locked(extent, block, number):
                        continue
                self._slots.clear(number)
                if extent is None or not self._has_rows(extent):
                    self._files.remove_locked(digest)

    def _adopt_unknown(self, known: dict[bytes, int]) -> None:
        """Open the files that allocate more than the table says, and bring in what it does not know."""
        for digest in self._files.digests():
            before = known.get(digest)
            if before is not None and self._files.data_allocated(digest) <= before + _SLACK_BYTES:
                continue
            with self._files.lock(digest):
                extent = self._files.open_locked(digest)
                if extent is None:
                    if not self._files.is_unfinished(digest):
                        self._health.found_corrupt(f"the map of extent files {digest.hex()}")
                    self._files.remove_locked(digest)
                    continue
                blocks = range(extent.version.block_count)
                known_bytes = sum(extent.count(block) for block in blocks) * CHUNK_BYTES
                if extent.data.allocated() > known_bytes + _SLACK_BYTES:
                    for block in blocks:
                        extent.trim(block)
                for block in blocks:
                    if self._entries.find(digest, block) == NOT_FOUND:
                        self._adopt_block_locked(extent, block, None)
                if not self._has_rows(extent):
                    self._files.remove_locked(digest)

    def _adopt_block_locked(self, extent: Extent, block: int, slot: int | None) -> bool:
        """Bring in a block that has no row, if its map has entries. The block has been trimmed."""
        chunks = extent.count(block)
        if chunks == 0:
            return False
        is_first = not self._has_rows(extent)
        # A file does not say by block what it allocates; after a trim it is what the chunks take.
        allocated = min(chunks * CHUNK_BYTES, extent.data.allocated())
        slot = self._slots.take() if slot is None else slot
        self._slots.put(slot, extent.digest, block, chunks, allocated, SETTLED)
        first, second = key_of(extent.digest, block)
        self._entries.restore(
            np.array([first], np.uint64), np.array([second], np.uint64),
            np.array([block_location(block, slot, chunks)], np.uint64), np.array([chunks * CHUNK_BYTES], np.int64),
        )  # fmt: skip
        self._count += is_first
        self._space.settle(0, allocated + BLOCK_ENTRIES_BYTES + (HEADER_UNIT_BYTES if is_first else 0))
        return True

    def reclaim(self) -> int:
        """Free what a failed write or eviction left behind: bytes of blocks that have no row. The number of objects
        that there are. Raises OSError."""
        count = 0
        for digest in self._files.digests():
            with self._files.lock(digest):
                extent = self._files.open_locked(digest)
                if extent is None or not self._has_rows(extent):
                    self._space.settle(0, -self._files.remove_locked(digest))
                    continue
                count += 1
                before = extent.allocated()
                try:
                    for block in range(extent.version.block_count):
                        if self._entries.find(digest, block) == NOT_FOUND:
                            extent.clear(block)
                finally:
                    self._space.settle(0, extent.allocated() - before)
        return count

    def validate(self, count: int) -> None:
        """The rows say what the maps say, and there are `count` objects; nobody may be writing."""
        found = 0
        for digest in self._files.digests():
            with self._files.lock(digest):
                extent = self._files.open_locked(digest)
                if extent is None:
                    continue
                found += 1
                for block in range(extent.version.block_count):
                    row = self._entries.find(digest, block)
                    chunks = block_parts(self._entries.location(row))[1] if row != NOT_FOUND else 0
                    assert chunks == extent.count(block), (extent.version.key, block, chunks)
        assert found == count, (found, count)

    def _has_rows(self, extent: Extent) -> bool:
        blocks = range(extent.version.block_count)
        return any(self._entries.find(extent.digest, block) != NOT_FOUND for block in blocks)
