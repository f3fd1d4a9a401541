"""A durable tier in Ceph, by librados: a pool that several writers share, with as many replicas as the pool has.

    NAME               head object: how many pieces the file may have (8 bytes, little endian)
    NAME.00000000 ...  pieces of 4 MiB, at the same offsets as in the user's file

The head is written before the pieces that it covers, in steps of 64 pieces, and removed after them: so a crash leaves no
piece that nobody can find. A file that is being deleted has one byte more in its head: so a reader in another process that
misses a piece can tell a hole from a file that is gone. Writes are sent at once and awaited in `sync` (at most IN_FLIGHT
pieces are on their way), as librados acks a write only when it is on all replicas.

Nothing hangs: `timeout_s` is given to librados for every operation, so a lost OSD or monitor costs at most that, and then
TierFailed. A full pool is asked to refuse (FULL_TRY), because librados by default waits until there is room.

librados' binding comes with Debian (`python3-rados`), not from PyPI; it is loaded from there if the interpreter does not
find it, and needs the interpreter's own ABI.
"""

import contextlib
import errno
import importlib.machinery
import importlib.util
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ...errors import DirtyDataMissing, TierFailed, TierFull, UsageError
from ..understore import Buffer
from .tier import Room

PIECE_BYTES = 4 * 1024 * 1024
HEAD_STEP = 64
IN_FLIGHT = 16
TIMEOUT_S = 30.0
# From librados.h; the binding does not export them.
FULL_TRY = 64
FULL_FORCE = 128
DEBIAN_PACKAGES = Path("/usr/lib/python3/dist-packages")
_HEAD = struct.Struct("<Q")


def load_rados() -> Any:
    """The module `rados`. Raises UsageError, saying what to install."""
    try:
        return importlib.import_module("rados")
    except ImportError:
        pass
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = DEBIAN_PACKAGES / f"rados{suffix}"
        spec = importlib.util.spec_from_file_location("rados", path) if path.exists() else None
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules["rados"] = module
            return module
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise UsageError(
        f"a rados:// write tier needs librados' binding for Python {version}",
        remedy="install the package python3-rados of your distribution, and use its Python",
    )


class RadosTier:
    """See the module. `client` is a Ceph user (`client.NAME`); its key is read by librados from `keyring`."""

    def __init__(
        self, pool: str, *, conf: Path, keyring: Path | None = None, client: str = "client.admin",
        namespace: str = "forebay-write", timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        """Connect. What is written under another `namespace` of the pool is not seen. Raises TierFailed if the cluster does not answer in time or has no such pool, UsageError without librados."""
        self._rados = load_rados()
        self._pool = pool
        self._namespace = namespace
        self.timeout_s = timeout_s
        seconds = str(max(1, round(timeout_s)))
        settings = {
            "rados_osd_op_timeout": seconds,
            "rados_mon_op_timeout": seconds,
            "client_mount_timeout": seconds,
            **({"keyring": str(keyring)} if keyring else {}),
        }
        self._cluster: Any = None
        try:
            self._cluster = self._rados.Rados(conffile=str(conf), name=client, conf=settings)
            self._cluster.connect(timeout=max(1, round(timeout_s)))
            self._pieces = self._cluster.open_ioctx(pool)
            self._pieces.set_namespace(namespace)
        except self._rados.Error as error:
            if self._cluster is not None:
                self._cluster.shutdown()
            raise TierFailed(
                f"cannot open rados pool {pool}: {_reason(error)}",
                remedy="check the conf file, the keyring and the pool",
            ) from error

    @property
    def label(self) -> str:
        return f"rados pool {self._pool}"

    @property
    def identity(self) -> str:
        try:
            return f"rados {self._cluster.get_fsid()} {self._pool} {self._namespace}"
        except self._rados.Error as error:
            self.fail("ask", "the cluster's id", error)

    def create(self, name: str) -> "RadosFile":
        file = RadosFile(self, name, reserved=0)
        file.reserve(1)
        return file

    def open(self, name: str) -> "RadosFile":
        return RadosFile(self, name, reserved=self.reserved(name))

    def delete(self, name: str) -> None:
        try:
            reserved = self.reserved(name, also_deleted=True)
        except DirtyDataMissing:
            return
        self.finish(self.write_object(name, _HEAD.size, b"x", flags=FULL_FORCE), name)
        for index in range(reserved):
            self.remove_object(piece_name(name, index))
        self.remove_object(name)

    def names(self) -> Iterator[str]:
        try:
            found = [one.key for one in self._pieces.list_objects()]
        except self._rados.Error as error:
            self.fail("list", "objects", error)
        return (name for name in found if not _is_piece(name))

    def room(self) -> Room:
        try:
            found = self._cluster.get_cluster_stats()
        except self._rados.Error as error:
            self.fail("ask", "the room", error)
        return Room(found["kb"] * 1024, found["kb_avail"] * 1024)

    def close(self) -> None:
        if self._cluster is not None:
            self._pieces.close()
            self._cluster.shutdown()
            self._cluster = None

    # --- Objects, for RadosFile. -------------------------------------------------------------------------

    def write_object(self, name: str, offset: int, data: Buffer, *, flags: int = FULL_TRY) -> Any:
        """Begin to write; gives the completion to wait for."""
        operation = self._rados.WriteOpCtx()
        with operation as op:
            op.write(bytes(data), offset)
            try:
                return self._pieces.operate_aio_write_op(op, name, flags=flags)
            except self._rados.Error as error:
                self.fail("write", name, error)

    def finish(self, completion: Any, name: str) -> None:
        """Wait for a write. Raises what became of it."""
        completion.wait_for_complete()
        result = completion.get_return_value()
        if result < 0:
            self.fail("write", name, OSError(-result, errno.errorcode.get(-result, str(result))))

    def read_object(self, name: str, offset: int, size: int) -> bytes:
        """What is there of a range; shorter, or nothing, where nothing is."""
        try:
            return bytes(self._pieces.read(name, size, offset))
        except self._rados.ObjectNotFound:
            return b""
        except self._rados.Error as error:
            self.fail("read", name, error)

    def truncate_object(self, name: str, size: int) -> None:
        try:
            if self._exists(name):
                self._pieces.trunc(name, size)
        except self._rados.Error as error:
            self.fail("truncate", name, error)

    def remove_object(self, name: str) -> None:
        with self._rados.WriteOpCtx() as op:
            op.remove()
            try:
                with contextlib.suppress(self._rados.ObjectNotFound):
                    self._pieces.operate_write_op(op, name, flags=FULL_FORCE)
            except self._rados.Error as error:
                self.fail("delete", name, error)

    def fail(self, action: str, name: str, error: Exception) -> NoReturn:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise TierFull(
                f"write tier {self.label} is full ({action} {name})",
                remedy="wait for the writeback, or raise its quota",
            ) from error
        remedy = "check that monitors and OSDs are up" if code == errno.ETIMEDOUT else "check the cluster"
        raise TierFailed(
            f"write tier {self.label} failed to {action} {name}: {_reason(error)}", remedy=remedy
        ) from error

    def _exists(self, name: str) -> bool:
        try:
            self._pieces.stat(name)
        except self._rados.ObjectNotFound:
            return False
        return True

    def reserved(self, name: str, *, also_deleted: bool = False) -> int:
        """How many pieces a file may have. Raises DirtyDataMissing if there is no such file (any more)."""
        head = self.read_object(name, 0, _HEAD.size + 1)
        if len(head) < _HEAD.size or (len(head) > _HEAD.size and not also_deleted):
            raise DirtyDataMissing(
                f"data file {name} of write tier {self.label} is gone",
                remedy="restore the pool; what the bucket already has is not affected",
            )
        return int(_HEAD.unpack(head[: _HEAD.size])[0])


class RadosFile:
    """A data file of a RadosTier."""

    def __init__(self, tier: RadosTier, name: str, *, reserved: int) -> None:
        self._tier = tier
        self._name = name
        self._reserved = reserved
        self._mutex = threading.Lock()
        self._in_flight: deque[tuple[str, Any]] = deque()
        self._failed: TierFailed | TierFull | None = None

    @property
    def name(self) -> str:
        return self._name

    def reserve(self, pieces: int) -> None:
        """Make the head cover so many pieces, durably, before any of them is written."""
        if pieces <= self._reserved:
            return
        wanted = -(-pieces // HEAD_STEP) * HEAD_STEP
        self._tier.finish(self._tier.write_object(self._name, 0, _HEAD.pack(wanted)), self._name)
        self._reserved = wanted

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        with self._mutex:
            self.reserve(-(-(offset + len(view)) // PIECE_BYTES))
            while len(view):
                index, start = divmod(offset, PIECE_BYTES)
                length = min(len(view), PIECE_BYTES - start)
                while len(self._in_flight) >= IN_FLIGHT:
                    self._finish_one_locked()
                name = piece_name(self._name, index)
                self._in_flight.append((name, self._tier.write_object(name, start, view[:length])))
                view = view[length:]
                offset += length

    def read(self, offset: int, size: int) -> Buffer:
        with self._mutex:
            self._drain_locked()
        parts = []
        is_short = False
        while size:
            index, start = divmod(offset, PIECE_BYTES)
            length = min(size, PIECE_BYTES - start)
            found = (
                self._tier.read_object(piece_name(self._name, index), start, length) if index < self._reserved else b""
            )
            is_short = is_short or len(found) < length
            parts.append(found + bytes(length - len(found)))
            offset += length
            size -= length
        if is_short:
            self._tier.reserved(self._name)  # raises if another process has deleted it
        return b"".join(parts)

    def truncate(self, size: int) -> None:
        with self._mutex:
            self._drain_locked()
            index, rest = divmod(size, PIECE_BYTES)
            if rest:
                self._tier.truncate_object(piece_name(self._name, index), rest)
                index += 1
            for gone in range(index, self._reserved):
                self._tier.remove_object(piece_name(self._name, gone))

    def sync(self) -> None:
        with self._mutex:
            self._drain_locked()

    def close(self) -> None:
        """Wait for what is on its way, so that nothing arrives after a delete."""
        with self._mutex, contextlib.suppress(TierFailed, TierFull):
            self._drain_locked()

    def _drain_locked(self) -> None:
        while self._in_flight:
            self._finish_one_locked()
        if self._failed is not None:
            raise type(self._failed)(self._failed.message, remedy=self._failed.remedy)

    def _finish_one_locked(self) -> None:
        """Wait for the oldest write. A failure stays: what it should have written is lost, whatever is written later."""
        name, completion = self._in_flight.popleft()
        try:
            self._tier.finish(completion, name)
        except (TierFailed, TierFull) as error:
            self._failed = self._failed or error


def piece_name(name: str, index: int) -> str:
    return f"{name}.{index:08x}"


def _is_piece(name: str) -> bool:
    _, dot, index = name.rpartition(".")
    return bool(dot) and len(index) == 8


def _reason(error: Exception) -> str:
    """What librados says, without its own prefix."""
    code = getattr(error, "errno", None)
    return errno.errorcode.get(code, str(error)) if isinstance(code, int) else str(error)
