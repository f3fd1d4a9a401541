"""Inode numbers of a live mount: dense, 16 bytes each, given only to what the kernel holds.

An inode is a file of a *slot* (a listing that inodes refer to, by row), or *loose* (its own small object: a file found
by a single request, or one that was replaced in the bucket while the kernel still holds it), or a folder. The kernel
holds an inode for as long as its lookups are above zero; then the number is free for another.

Slots let a million files of one folder have inodes without an object each, and be carried over to a newer listing of
the folder in a few array operations (`Slot.rows_in` says where each went).
"""

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..cache.namespace import Entry, FolderListing, FolderState

FREE, FOLDER, LOOSE, FIRST_SLOT = 0, 1, 2, 3
NO_INO = 0
# Detached inodes keep the whole old listing only if they are more than one in so many of its files.
FEW_DETACHED_SHARE = 8


class Folder:
    """A folder that the kernel holds, or the root. `slot` has the inodes of files of its present listing, if there are
    any; `loose` those of files found one by one; `folders` the sub-folders that the kernel holds."""

    __slots__ = ("folders", "ino", "loose", "name", "number", "parent", "prefix", "slot", "state")

    def __init__(self, number: int, parent: "Folder | None", name: bytes, prefix: bytes, state: FolderState) -> None:
        self.number = number
        self.parent = parent
        self.name = name
        self.prefix = prefix
        self.state = state
        self.ino = NO_INO
        self.slot: Slot | None = None
        self.loose: dict[bytes, int] = {}
        self.folders: dict[bytes, Folder] = {}


class Slot:
    """A listing with the inodes of its rows. `inos[row]` is NO_INO for rows that the kernel does not hold; `count` is how
    many it holds. A slot without any is dropped, and with it the listing."""

    __slots__ = ("count", "folder", "inos", "listing", "number")

    def __init__(self, number: int, folder: Folder, listing: FolderListing) -> None:
        self.number = number
        self.folder = folder
        self.listing = listing
        self.inos = array("I", bytes(4 * len(listing.files)))
        self.count = 0


@dataclass(frozen=True, slots=True)
class Loose:
    """A file with an object of its own."""

    folder: Folder
    entry: Entry


class InodeTable:
    """The arrays. Not thread-safe: the view locks. Numbers start at 1, which is the root folder for ever."""

    def __init__(self) -> None:
        self.places = array("I", [FREE])
        self.rows = array("I", [0])
        self.lookups = array("Q", [0])
        self.loose: dict[int, Loose] = {}
        self._slots: list[Slot | None] = [None] * FIRST_SLOT
        self._free_slots: list[int] = []
        self._free = array("I")

    def __len__(self) -> int:
        """Inodes that the kernel holds, the root included."""
        return len(self.places) - 1 - len(self._free)

    @property
    def slot_count(self) -> int:
        return len(self._slots) - FIRST_SLOT - len(self._free_slots)

    def slot(self, number: int) -> Slot:
        found = self._slots[number]
        assert found is not None
        return found

    def add(self, place: int, row: int) -> int:
        """A new inode, with no lookups yet."""
        if self._free:
            ino = self._free.pop()
            self.places[ino], self.rows[ino] = place, row
            return ino
        self.places.append(place)
        self.rows.append(row)
        self.lookups.append(0)
        return len(self.places) - 1

    def add_row(self, slot: Slot, row: int) -> int:
        ino = self.add(slot.number, row)
        slot.inos[row] = ino
        slot.count += 1
        return ino

    def add_loose(self, loose: Loose) -> int:
        ino = self.add(LOOSE, 0)
        self.loose[ino] = loose
        return ino

    def free(self, ino: int) -> None:
        """Take back a number that the kernel let go of; whoever refers to it has been told."""
        self.places[ino] = FREE
        self.lookups[ino] = 0
        self._free.append(ino)

    def add_slot(self, folder: Folder, listing: FolderListing) -> Slot:
        if self._free_slots:
            number = self._free_slots.pop()
            slot = self._slots[number] = Slot(number, folder, listing)
            return slot
        slot = Slot(len(self._slots), folder, listing)
        self._slots.append(slot)
        return slot

    def take_row(self, ino: int) -> None:
        """The inode leaves its slot, which is dropped if it was the last."""
        slot = self.slot(self.places[ino])
        slot.inos[self.rows[ino]] = NO_INO
        slot.count -= 1
        self.drop_if_empty(slot)

    def drop_if_empty(self, slot: Slot) -> None:
        if slot.count:
            return
        if slot.folder.slot is slot:
            slot.folder.slot = None
        self._slots[slot.number] = None
        self._free_slots.append(slot.number)

    def loosen(self, ino: int) -> None:
        """Give an inode of a slot an object of its own."""
        slot = self.slot(self.places[ino])
        self.loose[ino] = Loose(slot.folder, slot.listing.file(self.rows[ino]))
        self.take_row(ino)
        self.places[ino], self.rows[ino] = LOOSE, 0

    def carry_over(self, old: Slot, listing: FolderListing, rows: npt.NDArray[np.int64]) -> None:
        """Move the inodes of `old` to a newer listing of the folder: `rows[row]` is where a row went, -1 if nowhere.

        Those that went nowhere are detached: they keep the old listing, or, if they are few, an object each instead.
        """
        new = self.add_slot(old.folder, listing)
        old_inos = np.frombuffer(old.inos, np.uint32)
        held = np.flatnonzero(old_inos)
        targets = rows[held]
        moving, left = held[targets >= 0], held[targets < 0]
        if len(moving):
            targets = targets[targets >= 0]
            inos = old_inos[moving]
            np.frombuffer(new.inos, np.uint32)[targets] = inos
            np.frombuffer(self.places, np.uint32)[inos] = new.number
            np.frombuffer(self.rows, np.uint32)[inos] = targets
            old_inos[moving] = NO_INO
            new.count += len(moving)
            old.count -= len(moving)
        old.folder.slot = new
        self.drop_if_empty(new)
        if not len(left):
            self.drop_if_empty(old)
        elif len(left) * FEW_DETACHED_SHARE < len(old.inos):
            for ino in old_inos[left].tolist():
                self.loosen(ino)
