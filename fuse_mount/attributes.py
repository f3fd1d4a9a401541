"""How a node of the view looks to `stat`: one place decides it for every transport.

Attributes never expire (an inode is one version of one path), so they carry the longest timeout; a name carries the
one that the view gives it.
"""

import math
import stat
from collections.abc import Mapping
from typing import NamedTuple

from .options import MountOptions
from .view import Kind, Node
from .wire import ATTR_OUT, ENTRY_OUT

# Sixty-eight years: the kernel cuts what it cannot hold, and a 32-bit one can hold this.
FOREVER_S = 2**31 - 1
# A program's buffers follow this (Python's `open` allocates as much for every file), so it stays at a page.
BLOCK_BYTES = 4096
# Of folders, too: 1 says that subfolders are not counted here. With 2, programs that trust the count would see none.
LINKS = 1
_SECTOR_BYTES = 512
_NS = 1_000_000_000


class FileSystemTotals(NamedTuple):
    """What `statfs` says. An object store has no size, so there is always room: a pebibyte, and names without end."""

    blocks: int = 2**50 // BLOCK_BYTES
    free_blocks: int = 2**50 // BLOCK_BYTES
    files: int = 2**40
    free_files: int = 2**40
    name_bytes: int = 255


def split_seconds(ttl_s: float) -> tuple[int, int]:
    """(seconds, nanoseconds) of a timeout; infinity and whatever is too long become FOREVER_S."""
    if ttl_s >= FOREVER_S:
        return FOREVER_S, 0
    fraction, whole = math.modf(max(ttl_s, 0.0))
    return int(whole), int(fraction * _NS)


class Appearance:
    """Owner, group and mode of every node, by the options of the mount."""

    def __init__(self, options: MountOptions) -> None:
        self.uid = options.uid
        self.gid = options.gid
        self.modes: Mapping[int, int] = {
            int(Kind.FILE): stat.S_IFREG | (0o666 & ~options.umask),
            int(Kind.DIRECTORY): stat.S_IFDIR | (0o777 & ~options.umask),
            int(Kind.SYMLINK): stat.S_IFLNK | 0o777,
        }

    def attributes(self, node: Node) -> bytes:
        """The reply to GETATTR (fuse_attr_out)."""
        return ATTR_OUT.pack(FOREVER_S, 0, 0, *self._fields(node))

    def entry(self, node: Node) -> bytes:
        """The reply to LOOKUP, and the head of a READDIRPLUS entry (fuse_entry_out)."""
        ttl, ttl_ns = split_seconds(node.entry_ttl_s)
        return ENTRY_OUT.pack(node.ino, 0, ttl, FOREVER_S, ttl_ns, 0, *self._fields(node))

    def _fields(self, node: Node) -> tuple[int, ...]:
        size = node.size
        seconds, nanoseconds = divmod(node.mtime_ns, _NS)
        # Times before 1970 wrap as the kernel expects of an s64 that travels as u64.
        seconds &= 0xFFFFFFFFFFFFFFFF
        blocks = -(-size // _SECTOR_BYTES)
        return (
            node.ino, size, blocks, seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds,
            self.modes[int(node.kind)], LINKS, self.uid, self.gid, 0, BLOCK_BYTES, 0,
        )  # fmt: skip


def absent_entry(ttl_s: float) -> bytes:
    """The reply to LOOKUP that lets the kernel remember, for `ttl_s`, that there is no such name (nodeid 0)."""
    ttl, ttl_ns = split_seconds(ttl_s)
    return ENTRY_OUT.pack(0, 0, ttl, 0, ttl_ns, 0, *(0,) * 16)
