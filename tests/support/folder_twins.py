"""Two folders to which the same happens: a mount, and one on a local disk that says what should have come of it.

    twins = Twins(mount, local)
    for operation in random_operations(rng, twins): twins.do(operation)   # the same answer from both, or AssertionError
    twins.compare()                                                       # every file, attribute and folder

An operation is a name and plain arguments, so that a failing run can be read and told again. Paths are relative; what it answers
(bytes read, a size, names, an errno) is compared. Handles stay open from one operation to the next, also of what was deleted or
replaced meanwhile.

**Crashes.** What close, fsync or a change of names acked must be there afterwards. A file that is open and not synced may hold
any of what it held since, byte by byte, as on every file system (`settle`).
"""

import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import mmap
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

NAMES = [b"a", b"b", b"c", b"d", b"x", b"y"]
DEPTH = 4
HANDLES = 4
MIB = 1024 * 1024
# Inline in a record and at its edge, a data file, several requests of the kernel, several blocks of an object.
SIZES = [0, 1, 700, 5_000, 32_768, 32_769, 100_000, 600_000, 5 * MIB]
WEIGHTS = [2, 3, 8, 8, 3, 3, 6, 4, 1]
LARGEST = 12 * MIB
# Times that are set lie long before the test: so it can be told which are set and which come from a change.
LONG_AGO_S = 1_500_000_000
NOREPLACE, EXCHANGE = 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_AT_FDCWD = -100

# Errors of rmdir and rename between which the order of checks decides.
_SAME = {errno.EEXIST: errno.ENOTEMPTY, errno.EISDIR: errno.ENOTEMPTY}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Operation:
    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.arguments))})"


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


# --- One folder. ---------------------------------------------------------------------------------------------------


class Folder:
    """One of the two, and its open files by number."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self.handles: dict[int, int] = {}

    def path(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root

    def do(self, operation: Operation) -> Any:
        """What the operation answers: a value, or its errno as ("errno", name)."""
        try:
            return getattr(self, operation.name)(*operation.arguments)
        except OSError as error:
            number = error.errno or 0
            if operation.name in ("rmdir", "rename"):
                number = _SAME.get(number, number)
            return "errno", errno.errorcode[number]

    def close_all(self) -> None:
        """Give every handle up, though what is below them be gone."""
        for fd in self.handles.values():
            try:
                os.close(fd)
            except OSError:
                continue  # the mount died
        self.handles.clear()

    # Files by path.

    def write(self, path: bytes, flags: int, offset: int, seed: int, size: int, sync: bool) -> int:
        fd = os.open(self.path(path), os.O_WRONLY | flags, 0o644)
        try:
            _write_all(fd, content(seed, size), None if flags & os.O_APPEND else offset)
            if sync:
                os.fsync(fd)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def write_mapped(self, path: bytes, where: float, seed: int, size: int, sync: bool) -> int:
        fd = os.open(self.path(path), os.O_RDWR)
        try:
            length = os.fstat(fd).st_size
            if not length:
                return 0
            offset = int(where * length)
            os.pread(fd, size, offset)  # what cannot be read raises here; in the mapping it would be SIGBUS
            with mmap.mmap(fd, length) as mapped:
                data = content(seed, min(size, length - offset))
                mapped[offset : offset + len(data)] = data
                if sync:
                    mapped.flush()
            return length
        finally:
            os.close(fd)

    def read(self, path: bytes) -> str:
        fd = os.open(self.path(path), os.O_RDONLY)
        try:
            return _digest(fd)
        finally:
            os.close(fd)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.path(path), size)

    def copy_range(self, source: bytes, target: bytes, offset: int, size: int) -> int:
        first = os.open(self.path(source), os.O_RDONLY)
        try:
            second = os.open(self.path(target), os.O_WRONLY)
            try:
                if os.path.sameopenfile(first, second):
                    return 0
                return os.copy_file_range(first, second, size, 0, offset)
            finally:
                os.close(second)
        finally:
            os.close(first)

    # Names.

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self.path(path), 0o755)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.path(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.path(path))

    def symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, self.path(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.path(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if not flags:
            os.rename(self.path(old), self.path(new))
        elif _libc.renameat2(_AT_FDCWD, self.path(old), _AT_FDCWD, self.path(new), flags):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def names(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self.path(path)))

    # Attributes.

    def stat(self, path: bytes) -> tuple[int, ...]:
        return _facts(os.lstat(self.path(path)))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self.path(path), uid, gid)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self.path(path), ns=(mtime_ns, mtime_ns))

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.path(path), name, value, flags)

    def removexattr(self, path: bytes, name: str) -> None:
        os.removexattr(self.path(path), name)

    def xattrs(self, path: bytes) -> dict[str, bytes]:
        found = sorted(name for name in os.listxattr(self.path(path)) if name.startswith("user."))
        return {name: os.getxattr(self.path(path), name) for name in found}

    # Open files.

    def open(self, handle: int, path: bytes, flags: int) -> int:
        self.handles[handle] = os.open(self.path(path), flags, 0o644)
        return _facts(os.fstat(self.handles[handle]))[3]

    def close(self, handle: int) -> None:
        os.close(self.handles.pop(handle))

    def pwrite(self, handle: int, offset: int, seed: int, size: int) -> int:
        fd = self.handles[handle]
        _write_all(fd, content(seed, size), offset)
        return os.fstat(fd).st_size

    def pread(self, handle: int, offset: int, size: int) -> str:
        return hashlib.md5(os.pread(self.handles[handle], size, offset)).hexdigest()

    def ftruncate(self, handle: int, size: int) -> int:
        os.ftruncate(self.handles[handle], size)
        return os.fstat(self.handles[handle]).st_size

    def fallocate(self, handle: int, offset: int, size: int, punch: bool) -> int:
        fd = self.handles[handle]
        if not punch:
            os.posix_fallocate(fd, offset, size)
        elif _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(size)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return os.fstat(fd).st_size

    def fsync(self, handle: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.handles[handle])

    def fchmod(self, handle: int, mode: int) -> None:
        os.fchmod(self.handles[handle], mode)

    def futime(self, handle: int, mtime_ns: int) -> None:
        os.utime(self.handles[handle], ns=(mtime_ns, mtime_ns))

    def fstat(self, handle: int) -> tuple[int, ...]:
        return _facts(os.fstat(self.handles[handle]))

    def is_same(self, handle: int, path: bytes) -> bool:
        """Whether a path leads to the file that is open."""
        return os.path.samestat(os.fstat(self.handles[handle]), os.stat(self.path(path)))


def _write_all(fd: int, data: bytes, offset: int | None) -> None:
    """In several requests, one if there is nothing to write; at the end of the file (O_APPEND) without an offset."""
    for start in range(0, max(len(data), 1), 300_000):
        piece = data[start : start + 300_000]
        written = os.write(fd, piece) if offset is None else os.pwrite(fd, piece, offset + start)
        assert written == len(piece)


def _digest(fd: int) -> str:
    digest = hashlib.md5()
    while data := os.read(fd, MIB):
        digest.update(data)
    return digest.hexdigest()


def _facts(found: os.stat_result) -> tuple[int, ...]:
    """What must be the same; of times only those that were set."""
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    return found.st_mode, found.st_uid, found.st_gid, size, _set_time(found)


def _set_time(found: os.stat_result) -> int:
    is_kept = stat.S_ISREG(
        found.st_mode
    )  # a folder's changes with what is in it, and that of a link cannot be set here
    return found.st_mtime_ns if is_kept and found.st_mtime_ns < LONG_AGO_S * 10**9 else 0


# --- Both. ---------------------------------------------------------------------------------------------------------

# Operations by path that change the content of the file they lead to, and make it durable.
_DURABLE_WRITES = {"write", "write_mapped", "truncate", "copy_range"}
_UNSYNCED_WRITES = {"pwrite", "ftruncate", "fallocate"}


@dataclasses.dataclass
class _Unsynced:
    """What an open file has held since it was last durable; `may_vanish` if it never was."""

    held: list[bytes]
    may_vanish: bool


class Twins:
    def __init__(self, mount: Path, local: Path) -> None:
        self.mount = Folder(mount)
        self.local = Folder(local)
        self.history: list[str] = []
        # By inode number of the local file.
        self._unsynced: dict[int, _Unsynced] = {}
        # Modification times of the mount when they were last compared, by inode number and time of the local file.
        self._seen_times: dict[tuple[int, int], int] = {}

    def do(self, operation: Operation) -> None:
        """Raises AssertionError if the answers differ."""
        self.history.append(str(operation))
        before, emptied = self._inode(operation), self._emptied(operation)
        expected = self.local.do(operation)
        found = self.mount.do(operation)
        assert found == expected, f"{operation}: the mount says {found!r}, the local folder {expected!r}"
        if not isinstance(expected, tuple) or expected[0] != "errno":
            self._note(operation, before, emptied)

    def close_all(self) -> None:
        """Close every handle, in order."""
        for handle in sorted(self.local.handles):
            self.do(Operation("close", (handle,)))

    def sync_all(self) -> None:
        for handle in sorted(self.local.handles):
            self.do(Operation("fsync", (handle, False)))

    # --- Comparing. --------------------------------------------------------------------------------------

    def compare(self, is_ghost: Callable[[bytes], bool] = lambda path: False) -> None:
        """Every name, attribute and byte. Raises AssertionError. `is_ghost` says which names the mount may show besides."""
        expected = self._tree(self.local)
        found = {
            path: facts for path, facts in self._tree(self.mount).items() if path in expected or not is_ghost(path)
        }
        lacks, has_more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        assert not lacks + has_more, f"the mount lacks {lacks} and shows {has_more} besides"
        for path, facts in expected.items():
            assert found[path] == facts, f"{path!r}: the mount says {found[path]}, the local folder {facts}"
        self._compare_times()

    def _tree(self, folder: Folder) -> dict[bytes, tuple[Any, ...]]:
        tree: dict[bytes, tuple[Any, ...]] = {}
        for path in walk(folder):
            facts = folder.stat(path)
            if stat.S_ISLNK(facts[0]):
                tree[path] = "link", folder.readlink(path)
            elif stat.S_ISDIR(facts[0]):
                tree[path] = facts, folder.xattrs(path)
            else:
                tree[path] = facts, folder.read(path), folder.xattrs(path)
        return tree

    def _compare_times(self) -> None:
        """What nobody has changed keeps its time, whatever is uploaded, given up, or mounted anew."""
        seen: dict[tuple[int, int], int] = {}
        for path in walk(self.local):
            local, mount = os.lstat(self.local.path(path)), os.lstat(self.mount.path(path))
            if stat.S_ISREG(local.st_mode):
                key = local.st_ino, local.st_mtime_ns
                seen[key] = mount.st_mtime_ns
                before = self._seen_times.get(key, mount.st_mtime_ns)
                assert mount.st_mtime_ns == before, f"{path!r}: its time went from {before} to {mount.st_mtime_ns}"
        self._seen_times = seen

    # --- Crashes. ----------------------------------------------------------------------------------------

    def settle(self) -> list[str]:
        """After a crash: see that what was not synced is as it may be, and make the local folder the same; what differed.

        Every handle must be closed (`Folder.close_all`). Raises AssertionError.
        """
        found: list[str] = []
        for path in list(walk(self.local)):
            local = os.lstat(self.local.path(path))
            unsynced = self._unsynced.get(local.st_ino)
            if unsynced is None or not stat.S_ISREG(local.st_mode):
                continue
            times = {key for key in self._seen_times if key[0] == local.st_ino}
            for key in times:
                del self._seen_times[key]
            try:
                data = Path(os.fsdecode(self.mount.path(path))).read_bytes()
            except FileNotFoundError:
                assert unsynced.may_vanish, f"{path!r} is gone after a crash, and was durable once"
                os.unlink(self.local.path(path))
                found.append(f"{path!r} is gone")
                continue
            assert _is_mix(data, unsynced.held), f"{path!r}: {len(data)} bytes that it never held"
            if data != unsynced.held[-1]:
                found.append(f"{path!r} is an older state")
            times_ns = os.lstat(self.mount.path(path)).st_mtime_ns
            Path(os.fsdecode(self.local.path(path))).write_bytes(data)
            os.utime(self.local.path(path), ns=(times_ns, times_ns))
        self._unsynced.clear()
        return found

    def _inode(self, operation: Operation) -> int | None:
        """The local file whose content an operation is about to change, or to make durable."""
        name, arguments = operation.name, operation.arguments
        try:
            if name in _UNSYNCED_WRITES or name in ("fsync", "close"):
                fd = self.local.handles[arguments[0]]
                return os.fstat(fd).st_ino if name != "close" or _is_writable(fd) else None  # else it syncs nothing
            if name in _DURABLE_WRITES:
                return os.stat(self.local.path(arguments[1 if name == "copy_range" else 0])).st_ino
            if name == "open":
                return os.stat(self.local.path(arguments[1])).st_ino
            if name == "rename":
                return os.lstat(self.local.path(arguments[0])).st_ino
        except OSError:
            return None  # it is not there (yet)
        return None

    def _emptied(self, operation: Operation) -> bytes | None:
        """What a file holds that an open is about to empty: that is durable until the new content is."""
        if operation.name != "open" or not operation.arguments[2] & os.O_TRUNC:
            return None
        try:
            return Path(os.fsdecode(self.local.path(operation.arguments[1]))).read_bytes()
        except OSError:
            return None

    def _note(self, operation: Operation, inode: int | None, emptied: bytes | None) -> None:
        if operation.name == "open":
            self._note_open(operation, inode, emptied)
        elif inode in self._unsynced and operation.name in _UNSYNCED_WRITES:
            self._unsynced[inode].held.append(self._content(operation.arguments[0]))
        elif inode in self._unsynced:
            del self._unsynced[inode]
            for handle, fd in self.local.handles.items():
                if os.fstat(fd).st_ino == inode and _is_writable(fd):
                    self._unsynced[inode] = _Unsynced([self._content(handle)], may_vanish=False)

    def _note_open(self, operation: Operation, inode: int | None, emptied: bytes | None) -> None:
        handle, _, flags = operation.arguments
        fd = self.local.handles[handle]
        if not flags & os.O_ACCMODE:
            return
        now = os.fstat(fd).st_ino
        known = self._unsynced.get(now)
        if known is None:
            known = self._unsynced[now] = _Unsynced([] if emptied is None else [emptied], may_vanish=inode is None)
        known.held.append(self._content(handle))

    def _content(self, handle: int) -> bytes:
        fd = self.local.handles[handle]
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read()


def _is_writable(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)


def _is_mix(data: bytes, held: list[bytes]) -> bool:
    """Whether a file has one of the sizes that it had, and each byte is one that was there, or a zero of a hole."""
    if len(data) not in {len(one) for one in held}:
        return False
    found = np.frombuffer(data, np.uint8)
    is_known = found == 0
    for one in held:
        length = min(len(one), len(data))
        is_known[:length] |= found[:length] == np.frombuffer(one, np.uint8)[:length]
    return bool(np.all(is_known))


def walk(folder: Folder, path: bytes = b"") -> Iterator[bytes]:
    """Every path below, folders before what is in them. Links are not followed."""
    for name in folder.names(path):
        below = path + b"/" + name if path else name
        yield below
        if stat.S_ISDIR(os.lstat(folder.path(below)).st_mode):
            yield from walk(folder, below)


# --- Choosing. -----------------------------------------------------------------------------------------------------


class Chooser:
    """Picks operations that mostly make sense in the local folder as it is now, and sometimes do not."""

    def __init__(self, rng: random.Random, twins: Twins) -> None:
        self._rng = rng
        self._twins = twins
        self._next_handle = 0
        self._kinds: list[tuple[int, Callable[[], Operation | None]]] = [
            (14, self._write), (5, self._write_mapped), (5, self._truncate), (2, self._copy_range), (5, self._read),
            (9, lambda: self._op("mkdir", self._free())), (5, lambda: self._op("rmdir", self._known(stat.S_ISDIR))),
            (6, lambda: self._op("unlink", self._known(stat.S_ISREG))), (3, self._symlink), (14, self._rename),
            (2, lambda: self._op("readlink", self._known(stat.S_ISLNK))), (2, lambda: self._op("names", self._known(stat.S_ISDIR))),
            (3, self._stat), (3, self._chmod), (2, self._chown), (4, self._utime), (4, self._setxattr),
            (2, lambda: self._op("removexattr", self._known(), self._xattr_name())), (2, lambda: self._op("xattrs", self._known())),
            (8, self._open), (24, self._on_handle),
        ]  # fmt: skip

    def choose(self) -> Operation:
        while True:
            (pick,) = self._rng.choices([one for _, one in self._kinds], [weight for weight, _ in self._kinds])
            found = pick()
            if found is not None:
                return found

    def _op(self, name: str, *arguments: Any) -> Operation:
        return Operation(name, arguments)

    # Paths.

    def _known(self, of: Callable[[int], bool] = lambda mode: True) -> bytes:
        """A path that is there, of such a kind if possible; now and then one that is not."""
        if self._rng.random() < 0.08:
            return self._free()
        local = self._twins.local
        paths = list(walk(local))
        fitting = [path for path in paths if of(os.lstat(local.path(path)).st_mode)]
        pool = fitting if fitting and self._rng.random() < 0.92 else paths
        return self._rng.choice(pool) if pool else self._free()

    def _free(self) -> bytes:
        """A path that may be there or not, in a folder that mostly is."""
        local = self._twins.local
        folders = [b"", *(path for path in walk(local) if stat.S_ISDIR(os.lstat(local.path(path)).st_mode))]
        if self._rng.random() < 0.05:
            folders = list(walk(local)) or folders
        folder = self._rng.choice([path for path in folders if path.count(b"/") < DEPTH - 1] or [b""])
        name = self._rng.choice(NAMES) if self._rng.random() > 0.01 else b"n" * 256
        return folder + b"/" + name if folder else name

    def _size(self) -> int:
        return self._rng.choices(SIZES, WEIGHTS)[0]

    def _seed(self) -> int:
        return self._rng.randrange(1 << 30)

    def _offset(self, path: bytes) -> int:
        """Within a file mostly, sometimes beyond its end."""
        try:
            size = os.stat(self._twins.local.path(path)).st_size
        except OSError:
            size = 0
        return self._offset_in(size)

    def _offset_in(self, size: int) -> int:
        chance = self._rng.random()
        if chance < 0.2:
            return size
        if chance < 0.35:
            return min(size + self._rng.choice([1, 4096, 70_000, MIB]), LARGEST)
        return self._rng.randrange(size + 1)

    # Kinds.

    def _write(self) -> Operation:
        flags = self._rng.choice(
            [0, os.O_APPEND, os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_EXCL, os.O_TRUNC]
        )
        path = self._free() if flags & os.O_CREAT else self._known(stat.S_ISREG)
        offset = self._offset(path) if not flags & (os.O_TRUNC | os.O_EXCL) else 0
        if flags & os.O_APPEND and self._offset(path) > LARGEST:
            flags = os.O_TRUNC
        return self._op("write", path, flags, offset, self._seed(), self._size(), self._rng.random() < 0.3)

    def _write_mapped(self) -> Operation:
        path = self._known(stat.S_ISREG)
        return self._op("write_mapped", path, self._rng.random(), self._seed(), self._size(), self._rng.random() < 0.3)

    def _truncate(self) -> Operation:
        path = self._known(stat.S_ISREG)
        return self._op("truncate", path, self._rng.choice([0, self._offset(path), self._offset(path), 3, 40_000]))

    def _copy_range(self) -> Operation:
        target = self._known(stat.S_ISREG)
        return self._op("copy_range", self._known(stat.S_ISREG), target, self._offset(target), self._size())

    def _read(self) -> Operation:
        return self._op("read", self._known(stat.S_ISREG))

    def _symlink(self) -> Operation:
        return self._op("symlink", self._free(), self._rng.choice([*NAMES, b"x/y", b"nowhere"]))

    def _rename(self) -> Operation:
        kind = self._rng.choice([stat.S_ISREG, stat.S_ISREG, stat.S_ISDIR, stat.S_ISDIR, stat.S_ISLNK])
        flags = self._rng.choices([0, NOREPLACE, EXCHANGE], [20, 2, 2])[0]
        onto = self._known(kind) if flags == EXCHANGE or self._rng.random() < 0.4 else self._free()
        return self._op("rename", self._known(kind), onto, flags)

    def _stat(self) -> Operation:
        return self._op("stat", self._known())

    def _chmod(self) -> Operation:
        return self._op("chmod", self._known(), self._rng.choice([0o600, 0o644, 0o755, 0o444, 0o1777]))

    def _chown(self) -> Operation:
        return self._op("chown", self._known(), self._rng.choice([-1, 0, 1234]), self._rng.choice([-1, 0, 4321]))

    def _utime(self) -> Operation:
        return self._op("utime", self._known(), self._long_ago_ns())

    def _long_ago_ns(self) -> int:
        return self._rng.randrange(10**18, LONG_AGO_S * 10**9)

    def _xattr_name(self) -> str:
        return self._rng.choice(["user.one", "user.two"])

    def _setxattr(self) -> Operation:
        value = self._rng.randbytes(self._rng.choice([0, 3, 200]))
        flags = self._rng.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
        return self._op("setxattr", self._known(), self._xattr_name(), value, flags)

    def _open(self) -> Operation | None:
        if len(self._twins.local.handles) >= HANDLES:
            return None
        flags = self._rng.choice(
            [
                os.O_RDONLY,
                os.O_RDWR,
                os.O_RDWR | os.O_APPEND,
                os.O_RDWR | os.O_CREAT,
                os.O_RDWR | os.O_CREAT | os.O_TRUNC,
            ]
        )
        path = self._free() if flags & os.O_CREAT else self._known(stat.S_ISREG)
        self._next_handle += 1
        return self._op("open", self._next_handle, path, flags)

    def _on_handle(self) -> Operation | None:
        handles = self._twins.local.handles
        if not handles:
            return None
        handle = self._rng.choice(sorted(handles))
        try:
            size = os.fstat(handles[handle]).st_size
        except OSError:
            return None
        what = self._rng.choices(
            ["pwrite", "pread", "ftruncate", "fallocate", "fsync", "fchmod", "futime", "fstat", "is_same", "close"],
            [20, 8, 5, 4, 5, 1, 1, 2, 2, 6],
        )[0]
        arguments: dict[str, Callable[[], tuple[Any, ...]]] = {
            "pwrite": lambda: (self._offset_in(size), self._seed(), self._size()),
            "pread": lambda: (self._offset_in(size), self._size()),
            "ftruncate": lambda: (self._rng.choice([0, self._offset_in(size), self._offset_in(size)]),),
            "fallocate": lambda: self._rng.choice(
                [(self._offset_in(size), 1 + self._size(), True), (size, 1 + self._size(), False)]
            ),
            "fsync": lambda: (self._rng.random() < 0.5,),
            "fchmod": lambda: (self._rng.choice([0o600, 0o644]),),
            "futime": lambda: (self._long_ago_ns(),),
            "fstat": lambda: (),
            "is_same": lambda: (self._known(stat.S_ISREG),),
            "close": lambda: (),
        }
        return self._op(what, handle, *arguments[what]())
