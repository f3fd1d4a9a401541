"""How much a tier takes, and how much it may take.

    used + reserved <= capacity        at every moment
    free on the file system >= ratio   bytes and inodes, as far as it is in our hands

Room is *reserved* before a write, with an upper bound of what the write can allocate; afterwards the reservation
is exchanged for what the file system says was allocated (`st_blocks`). So the sum of real allocations never passes
the capacity, not even while a write is under way, and a write that fails gives everything back.

Free space of the file system is read with statvfs at most every `REFRESH_S`; what we granted since then is taken off.
"""

import math
import os
import threading
import time
from pathlib import Path

REFRESH_S = 0.25
# Kept back from ordinary writes: whoever makes room by moving bytes together needs a little first.
SPARE_BYTES = 1024 * 1024
# A large object makes two files, and perhaps the folder that they are in.
FILES_OF_OBJECT = 3


class Space:
    """The account of one tier. Thread-safe; no call waits for anything but its own lock and statvfs."""

    def __init__(self, folder: Path, capacity_bytes: int, free_space_ratio: float) -> None:
        self.capacity_bytes = capacity_bytes
        self._folder = folder
        self._ratio = free_space_ratio
        self._lock = threading.Lock()
        self._used = 0
        self._reserved = 0
        self._disk_room = 0
        self._refreshed_at = -REFRESH_S
        self._spare_inodes: float = 0

    @property
    def used_bytes(self) -> int:
        """What the tier's files are known to allocate, without reservations."""
        return self._used

    @property
    def reserved_bytes(self) -> int:
        return self._reserved

    @property
    def inodes_short(self) -> bool:
        """Whether no file may be added any more, because too few inodes are free on the file system."""
        with self._lock:
            self._refresh_locked()
            return self._spare_inodes < FILES_OF_OBJECT

    def try_inodes(self) -> bool:
        """Whether the files of one more object may be added; counts them until the file system is asked again."""
        with self._lock:
            self._refresh_locked()
            if self._spare_inodes < FILES_OF_OBJECT:
                return False
            self._spare_inodes -= FILES_OF_OBJECT
            return True

    def room_bytes(self) -> int:
        """What could be reserved now; negative when the file system's free space is below the ratio."""
        with self._lock:
            return self._room_locked()

    def limit_bytes(self, more_bytes: int = 0) -> int:
        """How much the tier could hold in all, if the file system had `more_bytes` more free."""
        with self._lock:
            self._refresh_locked()
            on_disk = self._used + self._reserved + self._disk_room + more_bytes
            return max(min(self.capacity_bytes - SPARE_BYTES, on_disk), 0)

    def is_short_of_disk(self, size_bytes: int) -> bool:
        """Whether the file system has less room than that, though the capacity would allow something."""
        with self._lock:
            self._refresh_locked()
            allowed = self.capacity_bytes - SPARE_BYTES - self._used - self._reserved
            return self._disk_room < min(size_bytes, allowed)

    def try_reserve(self, size_bytes: int, *, spare: bool = False) -> bool:
        """Set room aside, if there is any. Give it back with `settle`. `spare`: also the last bit (to make more room)."""
        with self._lock:
            if self._room_locked() + (SPARE_BYTES if spare else 0) < size_bytes:
                return False
            self._reserved += size_bytes
            self._disk_room -= size_bytes
            return True

    def settle(self, reserved_bytes: int, allocated_bytes: int) -> None:
        """End a reservation: `allocated_bytes` (negative if files shrank) were really taken."""
        with self._lock:
            self._reserved -= reserved_bytes
            self._used += allocated_bytes
            self._disk_room += reserved_bytes - allocated_bytes

    def refresh(self) -> None:
        """Ask the file system now."""
        with self._lock:
            self._refreshed_at = -REFRESH_S
            self._refresh_locked()

    def disk_is_full(self) -> None:
        """The file system answered ENOSPC, whatever statvfs says: nothing is granted until the next refresh."""
        with self._lock:
            self._refresh_locked()
            self._disk_room = min(self._disk_room, 0)

    def describe(self) -> str:
        """Why there is no room, in words."""
        with self._lock:
            if self._room_locked() < self._disk_room or self._disk_room > 0:
                return f"{self._used} of {self.capacity_bytes} bytes are used"
            return f"less than {self._ratio:.0%} of its disk would stay free"

    def _room_locked(self) -> int:
        self._refresh_locked()
        return min(self.capacity_bytes - SPARE_BYTES - self._used - self._reserved, self._disk_room)

    def _refresh_locked(self) -> None:
        now = time.monotonic()
        if now - self._refreshed_at < REFRESH_S:
            return
        self._refreshed_at = now
        try:
            stat = os.statvfs(self._folder)
        except OSError:
            self._disk_room = 0
            return
        free = stat.f_bavail * stat.f_frsize - int(stat.f_blocks * stat.f_frsize * self._ratio)
        self._disk_room = free - self._reserved
        # Some file systems (btrfs) make inodes as needed and report none.
        self._spare_inodes = stat.f_favail - int(stat.f_files * self._ratio) if stat.f_files else math.inf
