"""`View` of a live bucket: names come and go with the listings of its `Namespace`, inodes are one version of one path.

**Which inode a name gets.** While a listing is kept, or replaced by one that says the same of the name, the name keeps
its inode, and the kernel its attributes and its page cache. A name whose object has another etag or size gets a new
inode; the old one is *detached*: it keeps its attributes, version and bytes for as long as the kernel holds it.

**Folders** are held by name: a folder that vanishes and comes back while the kernel holds it is the same inode. They
have no time of their own in a bucket and show that of the mount's start.

**How long a name may be kept** by the kernel is what is left of `metadata_ttl_s` since its listing was asked for, so the
two waits do not add up. In an outage it is 0: the kernel asks each time, and the answer comes from memory.

One lock guards inodes and folders; it is held for microseconds, except while the inodes of a large folder are carried
over to a new listing (20 ms for a million; what can be computed before is computed without it).

A write overlay stands in front: it answers for names that it has itself and asks this view for all others.
`expire(prefix)` of the namespace makes a folder that was written back be asked anew.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping

from ..cache.namespace import IS_ABSENT, IS_FOLDER, Entry, FolderListing, Found, Namespace
from ..tiers.version import ObjectVersion
from .inode_table import FOLDER, FREE, LOOSE, NO_INO, Folder, InodeTable, Loose
from .view import ROOT_INO, Absent, DirEntry, Kind, Node

UNKNOWN_INO = 0xFFFFFFFF  # what libfuse says for "no number": entries listed but never looked up
IN_THREAD_ABOVE_ROWS = 5_000
MAX_KEPT_VERSIONS = 8192
_EMPTY: Mapping[str, bytes] = {}


class LiveView:
    """Implements `View`. The namespace belongs to the caller, who closes it after the unmount."""

    def __init__(self, namespace: Namespace, *, mount_time_ns: int | None = None) -> None:
        self._namespace = namespace
        self._root_prefix = namespace.prefix.encode("utf-8", "surrogateescape")
        self._folder_mtime_ns = time.time_ns() if mount_time_ns is None else mount_time_ns
        self._lock = threading.Lock()
        self._table = InodeTable()
        self._folders: list[Folder | None] = []
        self._free_folders: list[int] = []
        self._versions: dict[int, ObjectVersion] = {}
        ttl_s = namespace.options.metadata_ttl_s
        self._negative_ttl_s = ttl_s if ttl_s == float("inf") else 0.0
        root = self._add_folder(None, b"", self._root_prefix)
        assert root.ino == ROOT_INO
        self._table.lookups[ROOT_INO] = 1

    @property
    def negative_ttl_s(self) -> float:
        """0 while names expire: that a name is absent is answered from memory, and so is never older than the TTL."""
        return self._negative_ttl_s

    @property
    def inodes_held(self) -> int:
        """Inodes that the kernel holds, the root included; 1 when it has forgotten everything."""
        return len(self._table)

    # --- Names. -------------------------------------------------------------------------------------------------

    def peek(self, parent: int, name: bytes) -> Node | Absent | None:
        with self._lock:
            folder = self._folder_at(parent)
            if folder is None:
                return Absent.ABSENT
            found = self._namespace.peek(folder.state, name)
            if found is None:
                return None
            return self._node_of(folder, name, found)

    async def lookup(self, parent: int, name: bytes) -> Node | Absent:
        with self._lock:
            folder = self._folder_at(parent)
        if folder is None:
            return Absent.ABSENT
        found = await self._namespace.lookup(folder.state, name)
        if found.listing is not None:
            await self._bind(folder, found.listing)
        with self._lock:
            node = self._node_of(folder, name, found)
            if node is not None:
                return node
            # Another listing was bound meanwhile: what was found was right when it was asked, with an inode by itself.
            entry = found.entry(name)
            return Absent.ABSENT if entry is None else self._loose_node(folder, entry, 0.0)

    async def open_directory(self, ino: int) -> "LiveDirectory":
        with self._lock:
            folder = self._folder_at(ino)
        if folder is None:
            raise NotADirectoryError(self.path(ino))
        known = await self._namespace.listing(folder.state)
        await self._bind(folder, known.listing)
        return LiveDirectory(self, folder, known.listing, self._namespace.ttl_s(known))

    async def _bind(self, folder: Folder, listing: FolderListing) -> None:
        """Carry the inodes of the folder over to `listing`, if that is the present one and they belong to another."""
        while True:
            with self._lock:
                slot = folder.slot
                known = folder.state.known
                if slot is None or slot.listing is listing or (known is not None and known.listing is not listing):
                    return
            if len(listing.files) > IN_THREAD_ABOVE_ROWS:
                rows = await asyncio.to_thread(slot.listing.rows_in, listing)
            else:
                rows = slot.listing.rows_in(listing)
            with self._lock:
                # Inodes may have come and gone in the slot; what matters is that it is still the folder's.
                if folder.slot is slot:
                    self._table.carry_over(slot, listing, rows)
                    return

    # --- Inodes that the kernel holds. --------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        with self._lock:
            table = self._table
            place = table.places[ino]
            if place == FOLDER:
                return self._folder_node(ino, 0.0)
            if place == LOOSE:
                entry = table.loose[ino].entry
                return Node(ino, Kind.FILE, entry.size, entry.mtime_ns, 0.0)
            listing, row = table.slot(place).listing, table.rows[ino]
            return Node(ino, Kind.FILE, listing.sizes[row], listing.mtimes_ns[row], 0.0)

    def version(self, ino: int) -> ObjectVersion:
        found = self._versions.get(ino)
        if found is not None:
            return found
        with self._lock:
            table = self._table
            place = table.places[ino]
            if place == FOLDER:
                raise IsADirectoryError(self._path(ino))
            if place == LOOSE:
                loose = table.loose[ino]
                folder, entry = loose.folder, loose.entry
            else:
                slot = table.slot(place)
                folder, entry = slot.folder, slot.listing.file(table.rows[ino])
            key = (folder.prefix + entry.name).decode("utf-8", "surrogateescape")
            version = self._namespace.version(key, entry)
            if len(self._versions) >= MAX_KEPT_VERSIONS:
                self._versions.clear()
            self._versions[ino] = version
            return version

    def path(self, ino: int) -> bytes:
        with self._lock:
            return self._path(ino)

    def xattrs(self, ino: int) -> Mapping[str, bytes]:
        """On folders `user.forebay.skipped`: what of the folder cannot be shown and why (JSON), if there is anything."""
        with self._lock:
            folder = self._folder_at(ino)
            known = folder.state.known if folder is not None else None
        if known is None or not known.listing.skipped.counts:
            return _EMPTY
        skipped = known.listing.skipped
        shown = {"counts": dict(skipped.counts), "examples": list(skipped.examples)}
        return {"user.forebay.skipped": json.dumps(shown).encode()}

    def forget(self, ino: int, count: int) -> None:
        with self._lock:
            lookups = self._table.lookups
            left = lookups[ino] - count
            if left < 0:
                raise ValueError(f"inode {ino} was looked up {lookups[ino]} times and is forgotten {count} times")
            lookups[ino] = left
            if left == 0 and ino != ROOT_INO:
                self._drop(ino)

    # --- For a view in front that lays writes over this one. ------------------------------------------------------

    def hold(self, ino: int) -> None:
        """Count a lookup of an inode that is held."""
        with self._lock:
            if not self._table.lookups[ino]:
                raise KeyError(f"inode {ino} is not held")
            self._table.lookups[ino] += 1

    def holds(self, ino: int) -> bool:
        with self._lock:
            return ino < len(self._table.lookups) and self._table.lookups[ino] > 0

    def folder_at(self, prefix: bytes) -> int:
        """The inode of the folder of that key prefix, without a place in the tree of this view, with a lookup counted."""
        with self._lock:
            folder = self._add_folder(None, b"", prefix)
            self._table.lookups[folder.ino] += 1
            return folder.ino

    def held(self, parent: int, name: bytes) -> int:
        """The inode that the kernel holds of a name in a folder; 0 if there is none."""
        with self._lock:
            folder = self._folder_at(parent)
            if folder is None:
                return NO_INO
            if (child := folder.folders.get(name)) is not None:
                return child.ino
            if (loose := folder.loose.get(name, NO_INO)) or folder.slot is None:
                return loose
            row = folder.slot.listing.files.find(name)
            return folder.slot.inos[row] if row >= 0 else NO_INO

    def prefix_of(self, ino: int) -> bytes:
        """The key prefix of a folder inode."""
        with self._lock:
            folder = self._folder_at(ino)
            if folder is None:
                raise NotADirectoryError(self._path(ino))
            return folder.prefix

    def place_of(self, ino: int) -> tuple[int, bytes]:
        """(folder inode, name) under which an inode was found; the folder is 0 for one that has no place."""
        with self._lock:
            table = self._table
            place = table.places[ino]
            if place == FOLDER:
                folder = self._folder(table.rows[ino])
                return (folder.parent.ino if folder.parent is not None else NO_INO), folder.name
            if place == LOOSE:
                loose = table.loose[ino]
                return loose.folder.ino, loose.entry.name
            slot = table.slot(place)
            return slot.folder.ino, slot.listing.files[table.rows[ino]]

    def validate(self) -> None:
        """Check that arrays, slots and folders agree; for tests."""
        with self._lock:
            table = self._table
            per_slot: dict[int, int] = {}
            for ino in range(1, len(table.places)):
                place = table.places[ino]
                if place == FREE:
                    assert table.lookups[ino] == 0
                    continue
                assert table.lookups[ino] > 0, ino
                if place == FOLDER:
                    assert self._folder(table.rows[ino]).ino == ino
                elif place == LOOSE:
                    assert ino in table.loose
                else:
                    assert table.slot(place).inos[table.rows[ino]] == ino
                    per_slot[place] = per_slot.get(place, 0) + 1
            assert len(table.loose) == sum(1 for place in table.places if place == LOOSE)
            assert table.slot_count == len(per_slot)
            for number, count in per_slot.items():
                assert table.slot(number).count == count
            for folder in self._folders:
                if folder is not None:
                    assert folder.slot is None or folder.slot.number in per_slot
                    assert all(ino in table.loose for ino in folder.loose.values())

    def listed_folder(self, folder: Folder, name: bytes, ttl_s: float) -> Node:
        """The node of a sub-folder in a listing, with a lookup counted; for LiveDirectory."""
        with self._lock:
            return self._child_node(folder, name, ttl_s)

    def listed_file(self, folder: Folder, listing: FolderListing, row: int, ttl_s: float) -> Node:
        """The node of a file in a listing that may not be the present one any more; likewise."""
        with self._lock:
            slot = folder.slot
            if slot is None or slot.listing is listing:
                return self._row_node(folder, listing, row, ttl_s)
            entry = listing.file(row)
            present_row = slot.listing.files.find(entry.name)
            if present_row >= 0 and _is_same_version(slot.listing.file(present_row), entry):
                return self._row_node(folder, slot.listing, present_row, ttl_s)
            return self._loose_node(folder, entry, ttl_s)

    # --- With the lock held. --------------------------------------------------------------------------------------

    def _folder_at(self, ino: int) -> Folder | None:
        return self._folder(self._table.rows[ino]) if self._table.places[ino] == FOLDER else None

    def _folder(self, number: int) -> Folder:
        found = self._folders[number]
        assert found is not None
        return found

    def _folder_node(self, ino: int, ttl_s: float) -> Node:
        return Node(ino, Kind.DIRECTORY, 0, self._folder_mtime_ns, ttl_s)

    def _node_of(self, folder: Folder, name: bytes, found: Found) -> Node | Absent | None:
        """The node for an answer of the namespace, with a lookup counted; None if its listing is not the bound one."""
        listing, row = found.listing, found.row
        if listing is None:
            entry = found.single
            return Absent.ABSENT if entry is None else self._loose_node(folder, entry, found.ttl_s)
        if row == IS_ABSENT:
            return Absent.ABSENT
        if row == IS_FOLDER:
            return self._child_node(folder, name, found.ttl_s)
        if folder.slot is not None and folder.slot.listing is not listing:
            return None
        return self._row_node(folder, listing, row, found.ttl_s)

    def _row_node(self, folder: Folder, listing: FolderListing, row: int, ttl_s: float) -> Node:
        """The node of a file of the bound listing, or of the one that is bound hereby since no other is."""
        table, slot = self._table, folder.slot
        ino = slot.inos[row] if slot is not None else NO_INO
        if not ino:
            if folder.loose:
                entry = listing.file(row)
                if self._loose_ino(folder, entry):
                    return self._loose_node(folder, entry, ttl_s)
            if slot is None:
                slot = folder.slot = table.add_slot(folder, listing)
            ino = table.add_row(slot, row)
        table.lookups[ino] += 1
        return Node(ino, Kind.FILE, listing.sizes[row], listing.mtimes_ns[row], ttl_s)

    def _child_node(self, folder: Folder, name: bytes, ttl_s: float) -> Node:
        child = folder.folders.get(name) or self._add_folder(folder, name, folder.prefix + name + b"/")
        self._table.lookups[child.ino] += 1
        return self._folder_node(child.ino, ttl_s)

    def _loose_node(self, folder: Folder, entry: Entry, ttl_s: float) -> Node:
        """The node for what was found by itself: with the inode that the kernel has for this version, or a new one."""
        if entry.is_folder:
            return self._child_node(folder, entry.name, ttl_s)
        table = self._table
        ino = self._loose_ino(folder, entry) or self._row_ino(folder, entry)
        if not ino:
            ino = table.add_loose(Loose(folder, entry))
            folder.loose[entry.name] = ino
        table.lookups[ino] += 1
        return Node(ino, Kind.FILE, entry.size, entry.mtime_ns, ttl_s)

    def _loose_ino(self, folder: Folder, entry: Entry) -> int:
        """The loose inode of this name if it is of this version. One of another version is detached: no name has it."""
        ino = folder.loose.get(entry.name, NO_INO)
        if ino and not _is_same_version(self._table.loose[ino].entry, entry):
            del folder.loose[entry.name]
            return NO_INO
        return ino

    def _row_ino(self, folder: Folder, entry: Entry) -> int:
        """The inode in the bound listing of this name if it is of this version."""
        slot = folder.slot
        row = slot.listing.files.find(entry.name) if slot is not None else IS_ABSENT
        if slot is None or row < 0 or not slot.inos[row]:
            return NO_INO
        return slot.inos[row] if _is_same_version(slot.listing.file(row), entry) else NO_INO

    def _path(self, ino: int) -> bytes:
        table = self._table
        place = table.places[ino]
        if place == FOLDER:
            whole = self._folder(table.rows[ino]).prefix.removesuffix(b"/")
        elif place == LOOSE:
            loose = table.loose[ino]
            whole = loose.folder.prefix + loose.entry.name
        else:
            slot = table.slot(place)
            whole = slot.folder.prefix + slot.listing.files[table.rows[ino]]
        return whole[len(self._root_prefix) :]

    def _add_folder(self, parent: Folder | None, name: bytes, prefix: bytes) -> Folder:
        number = self._free_folders.pop() if self._free_folders else len(self._folders)
        state = self._namespace.hold(prefix.decode("utf-8", "surrogateescape"))
        folder = Folder(number, parent, name, prefix, state)
        folder.ino = self._table.add(FOLDER, number)
        if number == len(self._folders):
            self._folders.append(folder)
        else:
            self._folders[number] = folder
        if parent is not None:
            parent.folders[name] = folder
        return folder

    def _drop(self, ino: int) -> None:
        """The kernel holds this inode no more. Forgets may come out of order: a folder before its files."""
        table = self._table
        self._versions.pop(ino, None)
        place = table.places[ino]
        if place == FOLDER:
            self._drop_folder(self._folder(table.rows[ino]))
        elif place == LOOSE:
            loose = table.loose.pop(ino)
            if loose.folder.loose.get(loose.entry.name) == ino:
                del loose.folder.loose[loose.entry.name]
        else:
            table.take_row(ino)
        table.free(ino)

    def _drop_folder(self, folder: Folder) -> None:
        if folder.parent is not None and folder.parent.folders.get(folder.name) is folder:
            del folder.parent.folders[folder.name]
        self._namespace.release(folder.state)
        self._folders[folder.number] = None
        self._free_folders.append(folder.number)


class LiveDirectory:
    """One open folder: the listing of that moment. Cookies are places in it: sub-folders first, then files."""

    def __init__(self, view: LiveView, folder: Folder, listing: FolderListing, ttl_s: float) -> None:
        self._view = view
        self._folder = folder
        self._listing = listing
        self._until_s = time.monotonic() + ttl_s

    def read(self, cookie: int, *, plus: bool) -> Iterator[DirEntry]:
        return self._nodes(cookie) if plus else self._names(cookie)

    def _names(self, cookie: int) -> Iterator[DirEntry]:
        """Without lookups: the kernel takes only name, kind and number, and the number only for `d_ino`."""
        folders, files = self._listing.folders, self._listing.files
        nodes = Node(UNKNOWN_INO, Kind.DIRECTORY, 0, 0, 0.0), Node(UNKNOWN_INO, Kind.FILE, 0, 0, 0.0)
        for column, node, first in ((folders, nodes[0], 0), (files, nodes[1], len(folders))):
            for row in range(max(cookie - first, 0), len(column)):
                yield DirEntry(column[row], node, first + row + 1)

    def _nodes(self, cookie: int) -> Iterator[DirEntry]:
        view, folder, listing = self._view, self._folder, self._listing
        ttl_s = max(self._until_s - time.monotonic(), 0.0)
        folders, files, first = listing.folders, listing.files, len(listing.folders)
        for row in range(cookie, first):
            name = folders[row]
            yield DirEntry(name, view.listed_folder(folder, name, ttl_s), row + 1)
        for row in range(max(cookie - first, 0), len(files)):
            yield DirEntry(files[row], view.listed_file(folder, listing, row, ttl_s), first + row + 1)


def _is_same_version(one: Entry, other: Entry) -> bool:
    return one.etag == other.etag and one.size == other.size
