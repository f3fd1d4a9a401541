"""One open folder: a listing of the view, cut into replies that fit the kernel's buffer.

Offsets seen by programs (`telldir`): 0 start, 1 after `.`, 2 after `..`, and the view's cookie + 2 after each entry. So
they are as stable as the cookies, and a seek back starts again from the view.

A reply to READDIRPLUS can carry the attributes of an entry, which counts a lookup of it, or leave them out. With them,
whoever stats or opens what was listed needs no request of its own (2 us instead of 25); but each costs the kernel a
kilobyte. The kernel's own rule (READDIRPLUS_AUTO) fails for programs that read many names before they look at the first,
such as `find` and `rm`. So the rule is here: the first `KNOWN_FIRST` entries of a listing come with attributes, more only
if names of the folder are looked up after that, and then twice as many each time.

Between two replies the iterator of the view is kept, with the one entry that did not fit any more. If it has counted a
lookup, whoever drops it gives the lookup back.
"""

import errno
import threading
from collections.abc import Iterator

from .attributes import Appearance
from .view import Directory, DirEntry, Kind, View
from .wire import DIRENT, ENTRY_OUT, PADDING, UNKNOWN_INO

# A reply of this size holds thousands of entries and keeps the interpreter for a few milliseconds at most.
REPLY_BYTES = 128 * 1024
KNOWN_FIRST = 50_000
_DOTS = (b".", b"..")
_FIRST = len(_DOTS)
_NO_ENTRY = bytes(ENTRY_OUT.size)


class OpenDirectory:
    """The state of one directory handle. Any thread; calls on one handle go one after the other."""

    def __init__(self, view: View, directory: Directory, ino: int, appearance: Appearance) -> None:
        self._view = view
        self._directory = directory
        self._ino = ino
        self._appearance = appearance
        self._lock = threading.Lock()
        self._entries: Iterator[DirEntry] | None = None
        self._cookie = 0
        self._counted = False
        self._held: DirEntry | None = None
        # How many more entries come with attributes, and how many are granted when that proves useful.
        self._known_left = KNOWN_FIRST
        self._grant = 2 * KNOWN_FIRST

    def read(self, offset: int, size: int, *, plus: bool) -> bytes:
        """Directory entries after `offset` in the wire format (`plus`: of READDIRPLUS), at most `size` bytes; empty at the
        end. Raises what the view raises, if the reply would be empty.
        """
        parts: list[bytes] = []
        room = min(size, REPLY_BYTES)
        with self._lock:
            for index in range(offset, _FIRST):
                room -= self._add_dot(parts, index, plus)
            self._fill(parts, room, max(offset - _FIRST, 0), plus)
        return b"".join(parts)

    @property
    def is_listed_by_name_only(self) -> bool:
        """Whether `expect_lookups` would make a difference."""
        return self._known_left <= 0

    def expect_lookups(self) -> None:
        """Names of this folder are being looked up: list more of them with their attributes."""
        with self._lock:
            if self._known_left <= 0:
                self._known_left = self._grant
                self._grant *= 2

    def entries(self, offset: int, *, plus: bool) -> Iterator[DirEntry]:
        """Entries after `offset` one by one, for a transport that packs them itself; cookies are the view's."""
        return self._directory.read(max(offset - _FIRST, 0), plus=plus)

    @staticmethod
    def offset_after(entry: DirEntry) -> int:
        return entry.cookie + _FIRST

    def close(self) -> None:
        with self._lock:
            self._drop_held()
            self._entries = None

    def _add_dot(self, parts: list[bytes], index: int, plus: bool) -> int:
        name = _DOTS[index]
        ino = self._ino if index == 0 else UNKNOWN_INO
        record = DIRENT.pack(ino, index + 1, len(name), Kind.DIRECTORY) + name + PADDING[len(name)]
        if plus:
            # nodeid 0: the kernel takes the name and counts nothing.
            record = _NO_ENTRY + record
        parts.append(record)
        return len(record)

    def _fill(self, parts: list[bytes], room: int, cookie: int, plus: bool) -> None:
        counted = plus and self._known_left > 0
        held = self._resume(cookie, counted)
        entries = self._entries
        assert entries is not None
        fixed = DIRENT.size + (ENTRY_OUT.size if plus else 0)
        pack, entry_of = DIRENT.pack, self._appearance.entry
        before = len(parts)
        try:
            while True:
                entry = held or next(entries, None)
                held = None
                if entry is None:
                    break
                name, node = entry.name, entry.node
                name_bytes = len(name)
                padding = PADDING[name_bytes & 7]
                room -= fixed + name_bytes + len(padding)
                if room < 0:
                    self._held = entry
                    if not parts:
                        raise OSError(errno.EINVAL, f"a name of {name_bytes} bytes does not fit into the reply")
                    break
                if plus:
                    parts.append(entry_of(node) if counted else _NO_ENTRY)
                parts.append(pack(node.ino, entry.cookie + _FIRST, name_bytes, node.kind))
                parts.append(name)
                parts.append(padding)
                self._cookie = entry.cookie
        except Exception:
            # What was already taken goes out, for it is right and its lookups are counted; the next call meets the fault.
            self._drop_held()
            self._entries = None
            if not parts:
                raise
        if counted:
            self._known_left -= (len(parts) - before) // 4

    def _resume(self, cookie: int, counted: bool) -> DirEntry | None:
        """Make `_entries` go on after `cookie`; the entry held back from last time, if it goes on right there."""
        if self._entries is not None and self._cookie == cookie and self._counted == counted:
            held, self._held = self._held, None
            return held
        self._drop_held()
        self._entries = self._directory.read(cookie, plus=counted)
        self._cookie, self._counted = cookie, counted
        return None

    def _drop_held(self) -> None:
        held, self._held = self._held, None
        if held is not None and self._counted:
            self._view.forget(held.node.ino, 1)
