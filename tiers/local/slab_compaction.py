"""Moving the living out of slabs in which most is dead.

Evicting objects smaller than a page frees nothing until their neighbours go too, so a slab can be mostly dead and still
allocate all of its pages. Compaction copies what lives to the end of the newest slab, points the entries there,
and lets the old frames go. Each step leaves everything findable: a crash in between leaves an object twice, and the
restart keeps one of them.

It runs in the thread of a writer that had to evict, a bounded piece at a time, and uses room that is kept back for it.
"""

from ..version import ObjectVersion
from .entries import Entries
from .health import Health
from .index import small_parts
from .slabs import Slab, Slabs, write_need_bytes
from .space import Space

# A slab is compacted when less than this part of what it allocates lives: moving 3 bytes then gives 1 back. Lower would
# cost less work and leave more of the tier to the dead.
_BELOW = 0.75
_MIN_BYTES = 512 * 1024
# Moved between two holes (bounds the room that it takes), and by one call (bounds how long a writer is held up).
_GROUP_BYTES = 512 * 1024
_MOST_BYTES = 32 * 1024 * 1024


class Compaction:
    """Compacts slabs; one caller at a time."""

    def __init__(self, slabs: Slabs, entries: Entries, space: Space, health: Health) -> None:
        self._slabs = slabs
        self._entries = entries
        self._space = space
        self._health = health

    def compact(self) -> bool:
        """Move what lives in the slab with the smallest living part, so that its pages can go; at most
        `_MOST_BYTES` at a time. False if no slab is worth it, or there is no room to move into. Raises OSError."""
        slab = self._worst_slab()
        if slab is None:
            return False
        moved_bytes = group_bytes = 0
        group: dict[int, int] = {}
        for victim in self._slabs.living(slab):
            _, offset, size = small_parts(victim.location)
            frame = self._slabs.frame(victim)
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
                    self._slabs.forget_write(location)  # somebody took it out meanwhile
                    continue
            group[offset] = size
            group_bytes += size
            if group_bytes >= _GROUP_BYTES:
                self._slabs.kill(slab.number, group)
                moved_bytes += group_bytes
                group, group_bytes = {}, 0
                if moved_bytes >= _MOST_BYTES:
                    break
        self._slabs.kill(slab.number, group)
        return moved_bytes + group_bytes > 0

    def _worst_slab(self) -> Slab | None:
        """The slab to compact: much of what it allocates is dead, or it is one of too many that are nearly empty."""
        sparse_bytes = self._slabs.sparse_bytes()
        worst, worst_part = None, 1.0
        for slab in self._slabs.thinned():
            part = slab.live_bytes / slab.allocated if slab.allocated > _MIN_BYTES else 1.0
            if part >= _BELOW:
                part = slab.allocated / sparse_bytes if slab.allocated < sparse_bytes else 1.0
            if part == 1.0:
                self._slabs.is_dense(slab)
            elif part < worst_part and not slab.writing and not self._slabs.is_active(slab):
                worst, worst_part = slab, part
        return worst

    def _write_copy(self, version: ObjectVersion, data: memoryview) -> int | None:
        """Append an object that is here already; None if there is no room for two of it."""
        need = write_need_bytes(version)
        if not self._space.try_reserve(need, spare=True):
            return None
        try:
            return self._slabs.write(version, data)
        finally:
            self._space.settle(need, 0)
