"""What the records of the write side hold: nodes of the tree, objects to delete, uploads begun, writers and their lease.

All are immutable values; a change replaces one by another, so that undoing a change that could not be committed is
putting the old value back, and a reader without a lock sees a whole one.

Names, paths and object keys are bytes here (an object key is UTF-8 with `os.fsencode`'s escapes), because a file name
is bytes and a record must hold every one of them.
"""

import enum
import os
import stat
from typing import TypeAlias

import msgspec

from ...tiers.version import ObjectVersion
from .extents import Extents

ROOT_ID = 1
# Etags that no store gives: see Doomed.
OURS = ""
EMPTY = "*"


class Kind(enum.IntEnum):
    """What stands in a slot. Except for WHITEOUT the values are those of `d_type`."""

    WHITEOUT = 0
    DIRECTORY = 4
    FILE = 8
    SYMLINK = 10


class Remote(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An object version of the under store of this mount."""

    key: bytes
    etag: str
    size: int
    version_id: str | None = None

    @classmethod
    def of(cls, version: ObjectVersion) -> "Remote":
        return cls(os.fsencode(version.key), version.etag, version.size, version.version_id)

    def version(self, store_id: str) -> ObjectVersion:
        return ObjectVersion(store_id, os.fsdecode(self.key), self.etag, self.size, self.version_id)


class Node(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A slot of the tree: what the folder `parent` shows under `name`.

    A file's bytes are: `extents` from its data (data file or inline data named `data`), elsewhere `base` up to
    `base_limit`, elsewhere zeros, up to `size`. `remote` is what the under store is known to hold of this node, and
    under which key. `generation` counts durable states; 0 is a file that was never synced or closed, and so has no record.
    `dirty_since_ns` (wall clock) is 0 when everything is in the under store, verified.
    """

    id: int
    parent: int
    name: bytes
    kind: int
    mode: int = 0  # permission bits
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    xattrs: dict[bytes, bytes] | None = None
    generation: int = 0
    dirty_since_ns: int = 0
    writer: int = 0  # whose task the writeback is
    # Files.
    size: int = 0
    data: str = ""
    inline: bool = False
    extents: tuple[int, ...] = ()
    base: Remote | None = None
    base_limit: int = 0
    remote: Remote | None = None
    # Whether the listing may have something under this name, so that removing the node must leave a whiteout.
    covers: bool = False
    # Symbolic links.
    target: bytes = b""
    # Folders: the key prefix whose listing shows through; None hides it. `moving`: objects below are not yet under its path.
    lower: bytes | None = None
    moving: bool = False
    # Where records are shared. The writer that has the file open for writing: no other may, while that one is alive.
    open_by: int = 0
    # Counts what was committed of the content, by any writer.
    content: int = 0
    # Odd while bytes of the data file that this record names are being overwritten; two more for each time that this happened.
    rewrites: int = 0

    @property
    def record_key(self) -> bytes:
        return node_key(self.parent, self.name)

    @property
    def is_recorded(self) -> bool:
        return self.generation != 0

    @property
    def is_dirty(self) -> bool:
        return self.dirty_since_ns != 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of this node in the write tier."""
        return Extents.flat_bytes(self.extents) if self.data else 0

    @property
    def is_base(self) -> bool:
        """Whether the content is exactly the base's, so that a server-side copy is all it takes."""
        return self.base is not None and not self.extents and self.base_limit == self.base.size == self.size

    @property
    def st_mode(self) -> int:
        kinds = {Kind.DIRECTORY: stat.S_IFDIR, Kind.FILE: stat.S_IFREG, Kind.SYMLINK: stat.S_IFLNK}
        return kinds.get(Kind(self.kind), 0) | self.mode


class Doomed(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An object that must go. `etag` is the version that was seen; OURS means: whatever carries a tag of ours, and
    EMPTY: any object of no bytes (markers of folders, whoever made them).

    `recheck` asks for a second look after the time-out of a request, because a publish of unknown outcome may still arrive.

    `sends` counts the DELETEs that were sent, each before it was: one without an answer may arrive late, and take away what is under
    the key then, and nothing tells a new empty object from an old one. So nothing is published there before the time-out of
    a request is over; the entry stays until then, with `is_gone` if the object was seen to be absent.
    """

    key: bytes
    etag: str
    since_ns: int
    recheck: bool = False
    writer: int = 0
    sends: int = 0
    is_gone: bool = False

    @property
    def record_key(self) -> bytes:
        return b"d" + self.key


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An upload that was begun: node `node` in `generation`, to `key`. The object will carry `tag`."""

    nonce: str
    node: int
    generation: int
    key: bytes
    since_ns: int
    upload_id: str = ""
    writer: int = 0

    @property
    def record_key(self) -> bytes:
        return b"a" + self.nonce.encode()

    @property
    def tag(self) -> str:
        return f"{self.node:x}.{self.generation}.{self.nonce}"


def writer_key(number: int) -> bytes:
    """The record key of a writer."""
    return b"w%d" % number


class Writer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A process that writes, and shares its records. One whose `beats` stand still for long enough is taken for dead.

    `place` is where its process number means something (boot and PID namespace): who is in the same place can look.
    """

    number: int
    host: str
    pid: int
    what: str = ""
    place: str = ""
    started_ticks: int = 0
    beats: int = 0
    # Whether somebody waits there until everything is in the under store.
    is_flushing: bool = False

    @property
    def record_key(self) -> bytes:
        return writer_key(self.number)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.what or 'a writer'} on {self.host} (process {self.pid})"


LEASE_KEY = b"l"


class Lease(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Which writer brings what is dirty into the under store: the only one that uploads, deletes and gives back.

    Everything that it commits is guarded by this record, so that a holder that was replaced cannot commit any more.
    """

    holder: int

    @property
    def record_key(self) -> bytes:
        return LEASE_KEY


MARK_KEY = b"t"


class TierMark(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Which durable tier holds the data that these records name. `identity` is the tier's own, the same on every machine."""

    identity: str
    label: str
    host: str

    @property
    def record_key(self) -> bytes:
        return MARK_KEY


Entry: TypeAlias = Node | Doomed | Attempt | Writer | Lease | TierMark

_encoder = msgspec.msgpack.Encoder()
_TYPES = ((b"n", Node), (b"d", Doomed), (b"a", Attempt), (b"w", Writer), (LEASE_KEY, Lease), (MARK_KEY, TierMark))
_decoders: dict[bytes, msgspec.msgpack.Decoder[Node | Doomed | Attempt | Writer | Lease | TierMark]] = {
    kind: msgspec.msgpack.Decoder(type_) for kind, type_ in _TYPES
}


def node_key(parent: int, name: bytes) -> bytes:
    """The record key of a slot; those of one folder sort together."""
    return b"n" + parent.to_bytes(8, "big") + name


def encode(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode(key: bytes, body: bytes) -> Entry:
    """The entry of a record. Raises ValueError for a record that is none of ours or is damaged."""
    decoder = _decoders.get(key[:1])
    if decoder is None:
        raise ValueError(f"record of unknown kind {key[:1]!r}")
    try:
        entry: Entry = decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"damaged record {key!r}: {error}") from error
    if entry.record_key != key:
        raise ValueError(f"record {key!r} holds another entry")
    return entry
