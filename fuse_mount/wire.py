"""The FUSE wire format: the structures that the kernel and a file system exchange over /dev/fuse.

Source: Linux `include/uapi/linux/fuse.h`, protocol 7.38 (every later 7.x kernel speaks it, every field is where it was).
Only what Forebay uses is here. A request is `IN_HEADER`, then the structure of its opcode, then names that end with NUL.
A reply is `OUT_HEADER` (whole length, negative errno, the request's `unique`), then data. A notification is a reply
with `unique` 0 and the code in the place of the errno.

All integers are in the byte order of the machine and every structure is padded to 8 bytes, so one `Struct` each, with
standard sizes ("=" where the compiler adds nothing), describes them fully.
"""

import enum
import struct

MAJOR = 7
MINOR = 38
# 7.28 (Linux 4.20) brought requests above 128 KiB; older kernels are served through libfuse.
OLDEST_MINOR = 28

MIN_READ_BUFFER_BYTES = 8192
HEADER_BYTES = 40
UNKNOWN_INO = 0xFFFFFFFF


class Op(enum.IntEnum):
    """Operation codes of requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlag(enum.IntFlag):
    """What the kernel offers in INIT and what we ask for in the reply."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30


class OpenFlag(enum.IntFlag):
    """`open_flags` of the reply to OPEN, CREATE and OPENDIR."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3


NOTIFY_INVAL_ENTRY = 3

# len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
IN_HEADER = struct.Struct("=IIQQIIIHH")
# The part of it that every request needs: opcode, unique, nodeid.
IN_ROUTE = struct.Struct("=4xIQQ")
# uid, gid, pid of who asks, at offset 24.
IN_CALLER = struct.Struct("=24xIII")
# len, error, unique
OUT_HEADER = struct.Struct("=IiQ")

# major, minor, max_readahead, flags; later kernels add flags2 at offset 16.
INIT_IN = struct.Struct("=IIII")
INIT_IN_FLAGS2 = struct.Struct("=16xI")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, unused[7]
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")

# fh, offset, size, write_flags, lock_owner, flags, padding; then the data
WRITE_IN = struct.Struct("=QQIIQII")
WRITE_OUT = struct.Struct("=II")
# The writer lost the right to keep set-user-id and set-group-id bits.
WRITE_KILL_SUIDGID = 1 << 2
# flags, mode, umask, open_flags; then the name
CREATE_IN = struct.Struct("=IIII")
# mode, umask; then the name
MKDIR_IN = struct.Struct("=II")
# mode, rdev, umask, padding; then the name
MKNOD_IN = struct.Struct("=IIII")
# flags, open_flags
OPEN_IN = struct.Struct("=II")
# newdir; then two names
RENAME_IN = struct.Struct("=Q")
# newdir, flags, padding; then two names
RENAME2_IN = struct.Struct("=QII")
# fh; then unused, padding, lock_owner (FLUSH), or fsync_flags and padding (FSYNC)
FLUSH_IN = struct.Struct("=Q")
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, unused, uid, gid, unused
SETATTR_IN = struct.Struct("=IIQQQqqqIIIIIIII")
# size, flags; then the name and the value
SETXATTR_IN = struct.Struct("=II")
# fh, offset, length, mode, padding
FALLOCATE_IN = struct.Struct("=QQQII")


class Valid(enum.IntFlag):
    """Which fields of SETATTR are meant."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


class RenameFlag(enum.IntFlag):
    """`flags` of RENAME2, as of renameat2(2)."""

    NOREPLACE = 1
    EXCHANGE = 2


FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
# fh, offset, size; then read_flags, lock_owner, flags, padding
READ_IN = struct.Struct("=QQI")
RELEASE_IN = struct.Struct("=QII")
GETXATTR_IN = struct.Struct("=II")
GETXATTR_OUT = struct.Struct("=II")
INTERRUPT_IN = struct.Struct("=Q")
# fh, open_flags, padding
OPEN_OUT = struct.Struct("=QII")
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding and spare[6]
STATFS_OUT = struct.Struct("=QQQQQIII28x")
# parent, namelen, flags
NOTIFY_INVAL_ENTRY_OUT = struct.Struct("=QII")

# ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
_ATTR = "QQQQQQIIIIIIIIII"
# attr_valid, attr_valid_nsec, dummy, attr
ATTR_OUT = struct.Struct("=QII" + _ATTR)
# nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr
ENTRY_OUT = struct.Struct("=QQQQII" + _ATTR)
# ino, off, namelen, type; then the name, padded to 8 bytes
DIRENT = struct.Struct("=QQII")
# The only fields of an entry that name what it counts: the nodeid, and in a direntplus the length of the name.
ENTRY_NODEID = struct.Struct("=Q")

PADDING = tuple(bytes(-length % 8) for length in range(8))


def name_of(request: memoryview, at: int = HEADER_BYTES) -> bytes:
    """The name that ends the request, without its NUL. Raises ValueError when there is none."""
    raw = bytes(request[at:])
    if not raw.endswith(b"\0") or len(raw) == 1:
        raise ValueError(f"a request of {len(request)} bytes ends without a name")
    return raw[:-1]


def names_of(request: memoryview, at: int) -> tuple[bytes, bytes]:
    """Two names that end the request. Raises ValueError when there are not two."""
    parts = bytes(request[at:]).split(b"\0")
    if len(parts) != 3 or parts[2] or not parts[0] or not parts[1]:
        raise ValueError(f"a request of {len(request)} bytes does not end with two names")
    return parts[0], parts[1]


def caller_of(request: memoryview) -> tuple[int, int, int]:
    """(uid, gid, pid) of the process that asks."""
    uid, gid, pid = IN_CALLER.unpack_from(request)
    return uid, gid, pid


def forgotten(request: memoryview) -> list[tuple[int, int]]:
    """(inode, count) pairs of a BATCH_FORGET."""
    count, _ = BATCH_FORGET_IN.unpack_from(request, HEADER_BYTES)
    start = HEADER_BYTES + BATCH_FORGET_IN.size
    body = request[start : start + count * FORGET_ONE.size]
    if len(body) != count * FORGET_ONE.size:
        raise ValueError(f"BATCH_FORGET of {count} inodes in {len(request)} bytes")
    return list(FORGET_ONE.iter_unpack(body))


def direntplus_inodes(reply: memoryview) -> list[int]:
    """Inodes that a READDIRPLUS reply counted a lookup for (`.` and `..` count none: their nodeid is 0)."""
    inodes = []
    at = 0
    while at < len(reply):
        (ino,) = ENTRY_NODEID.unpack_from(reply, at)
        _, _, name_bytes, _ = DIRENT.unpack_from(reply, at + ENTRY_OUT.size)
        if ino:
            inodes.append(ino)
        at += ENTRY_OUT.size + DIRENT.size + name_bytes + len(PADDING[name_bytes % 8])
    return inodes
