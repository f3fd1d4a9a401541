"""A small `View` and a block cache for tests of the mount: a tree in memory, with counted lookups and scripted faults."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from forebay.fuse_mount.view import ROOT_INO, Absent, DirEntry, Kind, Node
from forebay.tiers.understore import Buffer
from forebay.tiers.version import ObjectVersion

STORE = "test://store"


@dataclass
class _Item:
    node: Node
    parent: int
    name: bytes
    content: bytes | None = None
    children: dict[bytes, int] = field(default_factory=dict)


class StaticView:
    """Files by path; folders appear with them. `before` is called with (operation, path) and may raise; with `ask_first`
    names are unknown to `peek` until looked up. `lookups` holds the counts that the kernel has not given back."""

    def __init__(
        self, files: Mapping[bytes, bytes] | None = None, *, negative_ttl_s: float = 0.0, entry_ttl_s: float = 1e9
    ) -> None:
        self.negative_ttl_s = negative_ttl_s
        self.entry_ttl_s = entry_ttl_s
        self.ask_first = False
        self.before: Callable[[str, bytes], None] = lambda operation, path: None
        self.gate: asyncio.Event | None = None
        self.lookups: Counter[int] = Counter()
        self.extra_xattrs: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._items: dict[int, _Item] = {}
        self._next_ino = ROOT_INO
        self._new(0, b"", Kind.DIRECTORY, None)
        for path, content in (files or {}).items():
            self.add(path, content)

    # --- arranging ---------------------------------------------------------------------------------------

    def add(self, path: bytes, content: bytes) -> int:
        """Put a file there; one that is there already gets a new inode, as a new version does."""
        folder, _, name = path.rpartition(b"/")
        parent = self.folder(folder)
        return self._new(parent, name, Kind.FILE, content)

    def folder(self, path: bytes) -> int:
        ino = ROOT_INO
        for part in filter(None, path.split(b"/")):
            ino = self._items[ino].children.get(part) or self._new(ino, part, Kind.DIRECTORY, None)
        return ino

    def remove(self, path: bytes) -> None:
        folder, _, name = path.rpartition(b"/")
        del self._items[self.folder(folder)].children[name]

    def content(self, ino: int) -> bytes:
        content = self._items[ino].content
        assert content is not None
        return content

    def _new(self, parent: int, name: bytes, kind: Kind, content: bytes | None) -> int:
        ino = self._next_ino
        # Large numbers, so that a place that keeps only 32 bits is found out.
        self._next_ino = ino + 1 if ino > 2**40 else 2**40 + 1
        node = Node(ino, kind, len(content or b""), 1_700_000_000_123_456_789 + ino, self.entry_ttl_s)
        self._items[ino] = _Item(node, parent, name, content)
        if parent:
            self._items[parent].children[name] = ino
        return ino

    # --- the protocol ------------------------------------------------------------------------------------

    def peek(self, parent: int, name: bytes) -> Node | Absent | None:
        self.before("peek", name)
        return None if self.ask_first else self._find(parent, name)

    async def lookup(self, parent: int, name: bytes) -> Node | Absent:
        if self.gate is not None:
            await self.gate.wait()
        self.before("lookup", name)
        return self._find(parent, name)

    def _find(self, parent: int, name: bytes) -> Node | Absent:
        ino = self._items[parent].children.get(name)
        if ino is None:
            return Absent.ABSENT
        self._count(ino, 1)
        return self._items[ino].node

    def node(self, ino: int) -> Node:
        self.before("node", self.path(ino))
        return self._items[ino].node

    def version(self, ino: int) -> ObjectVersion:
        item = self._items[ino]
        if item.content is None:
            raise IsADirectoryError(item.name)
        return ObjectVersion(STORE, str(ino), f"etag-{ino}", len(item.content))

    def path(self, ino: int) -> bytes:
        item = self._items[ino]
        return b"/".join(filter(None, (self.path(item.parent), item.name))) if item.parent else b""

    async def open_directory(self, ino: int) -> "StaticDirectory":
        self.before("open_directory", self.path(ino))
        return StaticDirectory(
            self,
            [self._items[child].node for child in self._items[ino].children.values()],
            list(self._items[ino].children),
        )

    def xattrs(self, ino: int) -> Mapping[str, bytes]:
        return self.extra_xattrs

    def forget(self, ino: int, count: int) -> None:
        self._count(ino, -count)

    def _count(self, ino: int, change: int) -> None:
        with self._lock:
            self.lookups[ino] += change
            assert self.lookups[ino] >= 0, f"inode {ino} was forgotten more often than looked up"
            if not self.lookups[ino]:
                del self.lookups[ino]


@dataclass
class StaticDirectory:
    view: StaticView
    nodes: list[Node]
    names: list[bytes]

    def read(self, cookie: int, *, plus: bool) -> Iterator[DirEntry]:
        for index in range(cookie, len(self.nodes)):
            self.view.before("read_directory", self.names[index])
            if plus:
                self.view._count(self.nodes[index].ino, 1)
            yield DirEntry(self.names[index], self.nodes[index], index + 1)


class MemoryCache:
    """A block cache over the contents of a StaticView. `cold` makes every read go through `read`; `before` may raise, and
    `gate` holds reads back until it is set."""

    def __init__(self, view: StaticView) -> None:
        self.view = view
        self.cold = False
        self.before: Callable[[str, ObjectVersion], None] = lambda operation, version: None
        self.gate: asyncio.Event | None = None
        self.waiting = 0
        self.forgotten: list[int] = []
        self.cut_bytes = 0

    def read_cached(self, version: ObjectVersion, offset: int, size: int, *, reader: int) -> Buffer | None:
        self.before("read_cached", version)
        return None if self.cold else self._bytes(version, offset, size)

    async def read(
        self, version: ObjectVersion, offset: int, size: int, *, reader: int, timeout_s: float | None = None
    ) -> Buffer:
        self.waiting += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            self.before("read", version)
        finally:
            self.waiting -= 1
        return self._bytes(version, offset, size)

    def forget_reader(self, reader: int) -> None:
        self.forgotten.append(reader)

    def _bytes(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        content = self.view.content(int(version.key))
        return memoryview(content)[offset : offset + size - self.cut_bytes]
