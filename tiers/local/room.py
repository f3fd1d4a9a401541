"""Making room: evicting for writers, and getting back what failures left behind.

A writer that finds no room evicts, in its own thread, a little more than it needs (down to the low watermark, but a
bounded batch), so that the next writers find some. One at a time: others who need room wait for it, which is
bounded by the batch. A victim's entry goes first and its bytes after it, so nobody can take it twice.
"""

import threading
import time

from ...errors import TierError, TierFull
from ..version import ObjectVersion
from .entries import Entries, OnEvict, Victim
from .extent_recovery import ExtentRecovery
from .extents import Extents
from .health import FULL, Health
from .index import is_block, small_parts
from .options import TierOptions
from .slab_compaction import Compaction
from .slab_recovery import SlabRecovery
from .slabs import Slabs
from .space import Space

# Small objects are evicted in groups, so that the table of a slab is read once for many of them.
_EVICT_GROUP = 256
# How often a writer makes room that another one takes before it gives up.
_MOST_ROUNDS = 16
# Entries that one writer evicts to have a file removed.
_MOST_FOR_INODES = 1024
# Large objects whose files it removes then.
_FILES_FOR_INODES = 4


class Room:
    """Makes room in one tier. Thread-safe. `evicted` and `evicted_bytes` count what went for it."""

    def __init__(
        self,
        options: TierOptions,
        entries: Entries,
        space: Space,
        health: Health,
        slabs: Slabs,
        extents: Extents,
        slab_recovery: SlabRecovery,
        extent_recovery: ExtentRecovery,
        on_evict: OnEvict | None,
    ) -> None:
        self.evicted = 0
        self.evicted_bytes = 0
        self._options = options
        self._entries = entries
        self._space = space
        self._health = health
        self._slabs = slabs
        self._extents = extents
        self._slab_recovery = slab_recovery
        self._extent_recovery = extent_recovery
        self._on_evict = on_evict
        self._compaction = Compaction(slabs, entries, space, health)
        self._lock = threading.Lock()
        self._left_over = False  # whether something failed in the middle, and may have left bytes behind
        self._reclaim_at = 0.0

    def reserve(self, need: int) -> None:
        """Reserve room for a write, evicting if there is none. Raises TierFull."""
        if self._space.try_reserve(need):
            return
        batch = int(self._options.capacity_bytes * (1 - self._options.low_watermark))
        batch_bytes = min(batch, self._options.batch_bytes)
        with self._lock:
            # Others may take what was made room for, as long as there is any: so more than once.
            for _ in range(_MOST_ROUNDS):
                if self._space.try_reserve(need):
                    return
                if self._others_give_way(need + batch_bytes):
                    continue
                evicted = self.evicted
                self._evict(need + batch_bytes)
                if self.evicted == evicted:
                    break
            if self._space.try_reserve(need):
                return
        raise TierFull(
            f"no room in the {self._options.name} tier at {self._options.folder}: {self._space.describe()}",
            remedy="give it more capacity, or unpin data",
        )

    def shrink(self) -> None:
        """Evict what is above the limits, which may have been lowered since the folder was last open."""
        if self._space.room_bytes() < 0:
            with self._lock:
                while self._space.room_bytes() < 0 and self._others_give_way(-self._space.room_bytes()):
                    pass
                self._evict(0)

    def _others_give_way(self, wanted_bytes: int) -> bool:
        """Whether others on the same file system freed something, if it is that which is short."""
        neighbours = self._options.neighbours
        if neighbours is None or not self._space.is_short_of_disk(wanted_bytes):
            return False
        freed = neighbours.give_way(wanted_bytes)
        if freed:
            self._space.refresh()
        return freed > 0

    def _evict(self, room_bytes: int) -> None:
        """Evict until that much could be reserved, or nothing can be evicted any more. Failures of the disk are noted."""
        before = self._space.used_bytes
        group: list[Victim] = []
        try:
            try:
                self._evict_until(room_bytes, group)
            finally:
                self._free_small(group)
        except OSError as error:
            self.disk_failed(error)
        self.evicted_bytes += max(before - self._space.used_bytes, 0)

    def _evict_until(self, room_bytes: int, group: list[Victim]) -> None:
        """Take victims out. Small ones are collected in `group`, entries out and bytes not yet freed, and freed together;
        those still in it at the end, or after an OSError, are left to the caller."""
        promised = 0
        while self._space.room_bytes() + promised < room_bytes:
            victim = self._entries.next_victim()
            if victim is None:
                return
            if is_block(victim.location):
                self.evicted += self._extents.evict(victim, self._on_evict)
                continue
            if not self._entries.remove(victim.row, victim.location):
                continue
            group.append(victim)
            promised += small_parts(victim.location)[2]
            if len(group) == _EVICT_GROUP or self._space.room_bytes() + promised >= room_bytes:
                self._free_small(group)
                promised = 0

    def _free_small(self, removed: list[Victim]) -> None:
        """Free the bytes of small victims and empty the list. Raises OSError after all of them were tried."""
        taken = removed.copy()
        removed.clear()
        self.evicted += len(taken)
        self._slabs.free(taken, self._on_evict)
        self._compaction.compact()

    def require_inodes(self, version: ObjectVersion) -> None:
        """Make sure that files may be added for a large object, evicting others' if it must be. Raises TierFull."""
        if self._extents.has_files(version) or self._space.try_inodes():
            return
        with self._lock:
            files = self._extents.count
            for _ in range(_MOST_FOR_INODES):
                victim = self._entries.next_victim()
                if victim is None or self._extents.count <= files - _FILES_FOR_INODES:
                    break
                if is_block(victim.location):
                    self.evicted += self._extents.evict(victim, self._on_evict)
                elif self._entries.remove(victim.row, victim.location):
                    self._free_small([victim])
            self._space.refresh()
        if not self._space.try_inodes():
            raise TierFull(
                f"too few inodes are free on the disk of the {self._options.name} tier at {self._options.folder}",
                remedy="remove files from that disk, or lower the free-space ratio",
            )

    def disk_failed(self, error: OSError) -> TierError:
        """Take note of a failed write or eviction; what to raise to a writer."""
        if error.errno in FULL:
            self._space.disk_is_full()
        self._left_over = True
        return self._health.write_failed(error)

    def reclaim(self) -> None:
        """Free the bytes that failed writes and evictions left behind; not more often than a failing disk is probed."""
        if not self._is_reclaim_due():
            return
        with self._lock:
            if not self._is_reclaim_due():
                return
            self._reclaim_at = time.monotonic() + self._options.probe_interval_s
            self._left_over = False
            try:
                self._slab_recovery.reclaim()
                self._extents.count = self._extent_recovery.reclaim()
            except OSError as error:
                self.disk_failed(error)

    def _is_reclaim_due(self) -> bool:
        return self._left_over and time.monotonic() >= self._reclaim_at
