"""The protocol between the FUSE layer and whatever gives it a tree: a live bucket or a snapshot.

An inode stands for **one version of one path**. When an object is replaced, the path gets a new inode number;
the old one keeps its attributes and its bytes for as long as someone has it open. So attributes never
expire, the page cache of an inode can always be kept, and no reader can see a mix of two versions.
Only names expire (`Node.entry_ttl_s`).

Lookup accounting: every `Node` returned by `peek`, `lookup` or a `Directory` read with `plus=True` counts one
lookup of that inode, which the kernel gives back through `forget`. If the reply could not be delivered, the
FUSE layer itself calls `forget(ino, 1)`.

Synchronous methods may be called from any thread, never block on I/O to a store, and take microseconds.
Coroutines run on the mount's event loop. Failures are `errors.ForebayError`s; the one errno boundary translates.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from ..tiers.version import ObjectVersion

ROOT_INO = 1


class Kind(enum.IntEnum):
    """What a node is; the values are those of `d_type` (DT_DIR, DT_REG, DT_LNK)."""

    DIRECTORY = 4
    FILE = 8
    SYMLINK = 10


class Node(NamedTuple):
    """One version of one path. `size` in bytes; `entry_ttl_s` is how long the kernel may keep the name (inf: always).

    A tuple, because listing a folder of a million entries makes a million of them: 0.1 us each, a frozen class 0.4 us.
    """

    ino: int
    kind: Kind
    size: int
    mtime_ns: int
    entry_ttl_s: float


class Absent(enum.Enum):
    """The answer "there is certainly no such name", as against None, "not known yet"."""

    ABSENT = "absent"


class DirEntry(NamedTuple):
    """`cookie` is the offset from which the next read goes on after this entry (> 0, stable while the handle lives)."""

    name: bytes
    node: Node
    cookie: int


class Directory(Protocol):
    """One open directory: a listing that does not change while the handle is open."""

    def read(self, cookie: int, *, plus: bool) -> Iterator[DirEntry]:
        """Entries after `cookie` (0: from the start), without `.` and `..`. With `plus` each *consumed* entry counts a lookup."""
        ...


class View(Protocol):
    """A read-only tree."""

    @property
    def negative_ttl_s(self) -> float:
        """How long the kernel may keep the answer ABSENT. 0: it asks every time; inf: the tree never changes at all,
        so listings may be kept by the kernel as well."""
        ...

    def peek(self, parent: int, name: bytes) -> Node | Absent | None:
        """What is known now, without I/O; None when `lookup` must be asked."""
        ...

    async def lookup(self, parent: int, name: bytes) -> Node | Absent:
        """The child of that name. Raises StoreUnavailable rather than guess when the store cannot be asked."""
        ...

    def node(self, ino: int) -> Node:
        """Attributes of an inode that the kernel holds."""
        ...

    def version(self, ino: int) -> ObjectVersion:
        """The content of a file inode. Raises IsADirectoryError for folders."""
        ...

    def path(self, ino: int) -> bytes:
        """Path inside the mount, without a leading slash, for messages and xattrs."""
        ...

    async def open_directory(self, ino: int) -> Directory:
        """A stable listing. Raises StoreUnavailable when it cannot be had: never an empty folder instead."""
        ...

    def xattrs(self, ino: int) -> Mapping[str, bytes]:
        """View-specific `user.forebay.*` attributes (labels, snapshot id); those of the cache are added by the FUSE layer."""
        ...

    def forget(self, ino: int, count: int) -> None: ...
