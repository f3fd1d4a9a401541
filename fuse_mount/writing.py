"""What a writable mount does, whichever transport asks: names changed, files opened, written, synced and closed.

A method that can answer at once does, and blocks on the local write tier at most; where the listing must be asked, or writers
must wait for room, or a large file be synced, or the records are on another machine, it gives a coroutine. `Answer` is either. Arguments are plain; the two transports
translate.

Files open for reading only, of which no node is known, are read as in a read-only mount; their keys are remembered, so that a deletion
waits until they are closed.
"""

import asyncio
import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from ..cache.write.drafts import MemoryFile, Pieces
from ..cache.write.nodes import Kind as NodeKind
from ..cache.write.nodes import Node as TreeNode
from ..cache.write.open_files import OpenFile
from ..cache.write.operations import Attributes, Listed, ListedFolder, Shown
from ..cache.write.options import WriteMode
from ..cache.write.write_side import WriteSide
from ..tiers.understore import Buffer
from .view import Kind, Node
from .wire import RenameFlag
from .writable_view import UNKNOWN, Unknown, WritableView, refuse_long

T = TypeVar("T")
Answer: TypeAlias = T | Coroutine[Any, Any, T]

# Syncs of large files at once. They wait for the disk; those of small files are a commit, made where they are asked.
SYNC_THREADS = 8
# Operations at once where each commit is a round trip: those that wait together are committed together.
SHARED_THREADS = 48
ZERO_BYTES = 1024 * 1024
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_FALLOC_ZERO_RANGE = 16
_XATTR_CREATE = 1
_XATTR_REPLACE = 2


class Writing:
    """Of one mount. `close` when it is gone."""

    def __init__(self, view: WritableView, side: WriteSide) -> None:
        self.view = view
        self.side = side
        self._files: dict[int, OpenFile] = {}
        # Files open without a node: (inode, key of what is read).
        self._plain: dict[int, tuple[int, bytes]] = {}
        self._plain_lock = threading.Lock()  # held while one of them becomes a file of a node
        self._handle_numbers = itertools.count(1)
        self._is_far = side.records.is_shared
        threads = SHARED_THREADS if self._is_far else SYNC_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="forebay-sync")

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].release()
        self._plain.clear()
        self._pool.shutdown()

    def keys_read(self) -> set[bytes]:
        """Keys of objects that are open without a node; deletions wait for them."""
        return {key for _, key in list(self._plain.values())}

    def is_kept(self, ino: int) -> bool:
        """Whether what the kernel keeps of a file's content is still right, as it is opened."""
        node_id = self.view.node_id(ino)
        if node_id not in self.side.changed_elsewhere:
            return True
        self.side.changed_elsewhere.discard(node_id)
        return False

    def gauges(self) -> dict[str, int]:
        return {"open_files": len(self._files) + len(self._plain)}

    # --- Files. ------------------------------------------------------------------------------------------

    def create(self, parent: int, name: bytes, attributes: Attributes) -> Answer[tuple[Node, int]]:
        """Make a file and open it: (node with a lookup counted, handle)."""

        def act(shown: Sequence[Shown]) -> tuple[Node, int]:
            file = self.side.create(lambda: self._path(parent, name), attributes, shown[0])
            return self.view.found(self._tree_of(file)), self._opened(file)

        return self._with_shown([(parent, name)], lambda shown, inos: act(shown))

    def open(self, ino: int, flags: int) -> Answer[int]:
        """Open a file; the handle."""
        if flags & os.O_ACCMODE == os.O_RDONLY and self.view.node_id(ino) is None:
            handle = next(self._handle_numbers)
            self._plain[handle] = ino, os.fsencode(self.view.live.version(ino).key)
            return handle
        writable = flags & os.O_ACCMODE != os.O_RDONLY

        def act() -> int:
            file = self._open_file(ino, writable=writable)
            if flags & os.O_TRUNC and file.writable:
                file.truncate(0)
            return self._opened(file)

        return self._commit(act) if writable else act()

    def _open_file(self, ino: int, *, writable: bool) -> OpenFile:
        node_id = self.view.node_id(ino)
        if node_id is not None:
            return self.side.open_node(node_id, writable=writable)
        listed = Listed(self.view.live.version(ino), self.view.live.node(ino).mtime_ns)
        file = self.side.open(lambda: self.view.place(ino), listed, writable=writable)
        self.view.adopt(ino, file.node_id)
        return file

    def reads_plainly(self, handle: int, ino: int) -> bool:
        """Whether reads of a handle go to the cache by version. A file that got a node since is read through it from now on."""
        if handle not in self._plain:
            return False
        node_id = self.view.node_id(ino)
        if node_id is None:
            return True
        try:
            self._read_through_node(handle, node_id)
        except FileNotFoundError as error:
            raise OSError(errno.ESTALE, "another mount has removed the file") from error
        return False

    def _read_through_node(self, handle: int, node_id: int) -> None:
        with self._plain_lock:
            if handle in self._plain:
                self._files[handle] = self.side.open_node(node_id, writable=False)
                self._plain.pop(handle, None)

    def _keep_readable(self, path: bytes) -> None:
        """Before the file at `path` loses its name: whoever opened it when no node was known reads on through its node."""
        found = self.side.resolve(path) if self._plain else None
        if isinstance(found, TreeNode) and found.kind == NodeKind.FILE:
            for handle, (ino, _) in list(self._plain.items()):
                if self.view.node_id(ino) == found.id:
                    self._read_through_node(handle, found.id)

    def read(self, handle: int, offset: int, size: int) -> Answer[Buffer]:
        file = self._file(handle)
        found = file.read(offset, size)
        return self.side.fetch(file, offset, size) if isinstance(found, Pieces) else found

    def write(self, handle: int, offset: int, data: Buffer) -> Answer[int]:
        """Write all of `data`; how much that was. What it gives may outlive `data`."""
        file = self._file(handle)
        if self.side.has_room(len(data)) and not file.must_tell(offset):
            file.write(offset, data)
            return self._fill_gaps(file, len(data)) if file.draft.is_fragmented else len(data)
        return self._write_later(file, offset, bytes(data))

    async def _write_later(self, file: OpenFile, offset: int, data: bytes) -> int:
        if not self.side.has_room(len(data)):
            await self.side.wait_for_room(len(data))
        await self._in_pool(lambda: file.write(offset, data))
        return await self._fill_gaps(file, len(data)) if file.draft.is_fragmented else len(data)

    async def _fill_gaps(self, file: OpenFile, written: int) -> int:
        await self.side.fill_gaps(file)
        return written

    def flush(self, handle: int) -> Answer[None]:
        """What close(2) waits for."""
        file = self._files.get(handle)
        if file is None or not file.writable:
            return None
        if self.side.options.mode is WriteMode.THROUGH:
            return self._write_through(file)
        return self._sync(file, closing=True)

    def sync(self, handle: int) -> Answer[None]:
        """fsync(2), also through a handle that only reads: it is the file that is synced."""
        plain = self._plain.get(handle)
        node_id = self.view.node_id(plain[0]) if plain is not None else None
        if node_id is not None and node_id in self.side.state.by_id:
            self._read_through_node(handle, node_id)
        file = self._files.get(handle)
        return None if file is None else self._sync(file, closing=False)

    def _sync(self, file: OpenFile, *, closing: bool) -> Answer[None]:
        def work() -> None:
            file.sync(closing=closing)

        if not file.draft.is_changed or (file.draft.file is None or isinstance(file.draft.file, MemoryFile)):
            return self._commit(work)
        return self._in_pool(work)

    async def _write_through(self, file: OpenFile) -> None:
        await self._in_pool(lambda: file.sync(closing=True))
        node = self.side.state.by_id.get(file.node_id)
        path = self.side.state.path_of(node) if node is not None else None
        if path is not None:
            await self.side.flush(path)

    def release(self, handle: int) -> Answer[None]:
        self._plain.pop(handle, None)
        file = self._files.pop(handle, None)
        if file is None:
            return None
        if file.writable and file.draft.is_changed:
            return self._in_pool(file.release)
        return self._commit(file.release)

    def discard(self, handle: int) -> None:
        """Take back a handle that nobody got."""
        self._plain.pop(handle, None)
        file = self._files.pop(handle, None)
        if file is not None:
            file.release()

    def allocate(self, handle: int, offset: int, length: int, mode: int) -> Answer[None]:
        """fallocate(2): room cannot be promised on an object store, zeros can. Raises OSError EOPNOTSUPP for other modes."""
        file = self._file(handle)
        if mode & ~(_FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, "this mode of fallocate is not offered")
        end = offset + length
        if mode & (_FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
            return self._in_pool(lambda: self._zero(file, offset, min(end, file.size), end, mode))
        if not mode & _FALLOC_KEEP_SIZE and end > file.size:
            file.truncate(end)
        return None

    def _zero(self, file: OpenFile, offset: int, stop: int, end: int, mode: int) -> None:
        while offset < stop:
            size = min(stop - offset, ZERO_BYTES)
            file.write(offset, bytes(size))
            offset += size
        if mode & _FALLOC_ZERO_RANGE and not mode & _FALLOC_KEEP_SIZE and end > file.size:
            file.truncate(end)

    # --- Attributes. -------------------------------------------------------------------------------------

    def set_attributes(
        self, ino: int, *, handle: int | None, size: int | None, mode: int | None, uid: int | None, gid: int | None,
        mtime_ns: int | None,
    ) -> Answer[Node]:  # fmt: skip
        """Change what is given; the node as it is then."""

        def act() -> Node:
            if size is not None:
                self._truncate(ino, handle, size)
            permissions = None if mode is None else stat.S_IMODE(mode)
            given = {"mode": permissions, "uid": uid, "gid": gid, "mtime_ns": mtime_ns}
            if all(value is None for value in given.values()):
                return self.view.node(ino)
            if self._is_gone(ino):
                self.view.change_gone(ino, given)
            else:
                tree = self.side.set_attributes(lambda: self.view.place(ino), self._shown_of(ino), **given)
                self.view.adopt(ino, tree.id)
            return self.view.node(ino)

        return self._commit(act)

    def _truncate(self, ino: int, handle: int | None, size: int) -> None:
        file = self._files.get(handle) if handle is not None else None
        if file is not None and file.writable:
            file.truncate(size)
            return
        opened = self._open_file(ino, writable=True)
        try:
            opened.truncate(size)
            opened.sync()  # truncate(2): nobody will close it
        finally:
            opened.release()

    def drop_privileges(self, ino: int) -> None:
        """Take set-user-id and set-group-id away from what was written or changed by somebody else."""
        tree = self.view.tree_node(ino)
        if tree is not None and not self._is_gone(ino) and tree.mode & (stat.S_ISUID | stat.S_ISGID):
            self.side.set_attributes(lambda: self.view.place(ino), mode=tree.mode & ~(stat.S_ISUID | stat.S_ISGID))

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> Answer[None]:
        self._check_xattr(name)
        tree = self.view.tree_node(ino)
        known = (tree.xattrs or {}) if tree is not None else {}
        if flags & _XATTR_CREATE and name in known:
            raise OSError(errno.EEXIST, "the attribute is there")
        if flags & _XATTR_REPLACE and name not in known:
            raise OSError(errno.ENODATA, "no such attribute")
        return self._commit(lambda: self._change_xattr(ino, name, value))

    def remove_xattr(self, ino: int, name: bytes) -> Answer[None]:
        self._check_xattr(name)
        return self._commit(lambda: self._change_xattr(ino, name, None))

    def _change_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        if self._is_gone(ino):
            raise OSError(errno.ENOENT, "the file is gone")
        self.side.set_xattr(lambda: self.view.place(ino), name, value, self._shown_of(ino))
        found = self.side.resolve(self.view.path(ino))
        if isinstance(found, TreeNode):
            self.view.adopt(ino, found.id)

    @staticmethod
    def _check_xattr(name: bytes) -> None:
        if not name.startswith(b"user.") or name.startswith(b"user.forebay."):
            raise OSError(errno.EOPNOTSUPP, "only attributes user.* can be set, and user.forebay.* are ours")

    def read_link(self, ino: int) -> bytes:
        tree = self.view.tree_node(ino)
        if tree is None or tree.kind != NodeKind.SYMLINK:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return tree.target

    # --- Names. ------------------------------------------------------------------------------------------

    def mkdir(self, parent: int, name: bytes, attributes: Attributes) -> Answer[Node]:
        def act(shown: Sequence[Shown], inos: Sequence[int]) -> Node:
            return self.view.found(self.side.mkdir(lambda: self._path(parent, name), attributes, shown[0]))

        return self._with_shown([(parent, name)], act)

    def symlink(self, parent: int, name: bytes, target: bytes, attributes: Attributes) -> Answer[Node]:
        def act(shown: Sequence[Shown], inos: Sequence[int]) -> Node:
            return self.view.found(self.side.symlink(lambda: self._path(parent, name), target, attributes, shown[0]))

        return self._with_shown([(parent, name)], act)

    def make(self, parent: int, name: bytes, attributes: Attributes) -> Answer[Node]:
        """mknod(2) of a regular file."""

        def act(shown: Sequence[Shown], inos: Sequence[int]) -> Node:
            file = self.side.create(lambda: self._path(parent, name), attributes, shown[0])
            try:
                file.sync()
            finally:
                file.release()
            return self.view.found(self._tree_of(file))

        return self._with_shown([(parent, name)], act)

    def unlink(self, parent: int, name: bytes) -> Answer[None]:
        def act(shown: Sequence[Shown], inos: Sequence[int]) -> None:
            self._keep_readable(self._path(parent, name))
            self.side.unlink(lambda: self._path(parent, name), shown[0])

        return self._with_shown([(parent, name)], act)

    async def rmdir(self, parent: int, name: bytes) -> None:
        shown, _ = await self.view.shown_later(parent, name)
        await self._refuse_unless_empty(parent, name)
        await self._in_pool(lambda: self.side.rmdir(lambda: self._path(parent, name), shown))

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Answer[None]:
        if flags & ~(RenameFlag.NOREPLACE | RenameFlag.EXCHANGE) or flags == RenameFlag.NOREPLACE | RenameFlag.EXCHANGE:
            raise OSError(errno.EINVAL, "these flags of rename are not offered")
        places = [(parent, name), (new_parent, new_name)]

        def act(shown: Sequence[Shown], inos: Sequence[int]) -> None:
            def old() -> bytes:
                return self._path(parent, name)

            def new() -> bytes:
                return self._path(new_parent, new_name)

            self.view.match_child(parent, name)
            if flags & RenameFlag.EXCHANGE:
                self.view.match_child(new_parent, new_name)
                self.side.exchange(old, new, *shown)
                self._adopt_at(inos[1], old())
            else:
                self._keep_readable(new())
                self.side.rename(old, new, *shown, replace=not flags & RenameFlag.NOREPLACE)
            self._adopt_at(inos[0], new())

        found = self.view.peek(new_parent, new_name)
        if isinstance(found, Node):
            self.view.forget(found.ino, 1)
        if found is None or (isinstance(found, Node) and found.kind == Kind.DIRECTORY and not flags):
            return self._rename_over(places, act)
        return self._with_shown(places, act)

    async def _rename_over(
        self, places: Sequence[tuple[int, bytes]], act: Callable[[Sequence[Shown], Sequence[int]], None]
    ) -> None:
        """Onto what may be a folder, which must then be empty."""
        parent, name = places[1]
        found = await self.view.lookup(parent, name)
        if isinstance(found, Node):
            self.view.forget(found.ino, 1)
            if found.kind == Kind.DIRECTORY and places[0] != places[1]:
                await self._refuse_unless_empty(parent, name)
        later = self._with_shown(places, act)
        if asyncio.iscoroutine(later):
            await later

    def _adopt_at(self, ino: int, path: bytes) -> None:
        found = self.side.resolve(path)
        if isinstance(found, TreeNode):
            self.view.adopt(ino, found.id)

    async def _refuse_unless_empty(self, parent: int, name: bytes) -> None:
        node = await self.view.lookup(parent, name)
        if not isinstance(node, Node):
            return  # the operation says so
        try:
            if node.kind == Kind.DIRECTORY and await self.view.has_entries(node.ino):
                raise OSError(errno.ENOTEMPTY, "the folder is not empty")
        finally:
            self.view.forget(node.ino, 1)

    # --- Inside. -----------------------------------------------------------------------------------------

    def _with_shown(
        self, places: Sequence[tuple[int, bytes]], act: Callable[[Sequence[Shown], Sequence[int]], T]
    ) -> Answer[T]:
        """Do something that needs to know what the listing shows at these places: at once if that is known, else later."""
        shown: list[Shown] = []
        inos: list[int] = []
        for parent, name in places:
            found = UNKNOWN if self._is_far else self.view.shown(parent, name)
            if isinstance(found, Unknown):
                return self._ask_first(places, act)
            shown.append(found[0])
            inos.append(found[1])
        return self._commit(lambda: act(shown, inos))

    async def _ask_first(
        self, places: Sequence[tuple[int, bytes]], act: Callable[[Sequence[Shown], Sequence[int]], T]
    ) -> T:
        while True:
            found = [await self.view.shown_later(parent, name) for parent, name in places]
            sequence = self.side.ledger.sequence

            def work(found: Sequence[tuple[Shown, int]] = found) -> T:
                return act([one for one, _ in found], [ino for _, ino in found])

            try:
                return await self._in_pool(work)
            except (FileNotFoundError, FileExistsError):
                # Others may have changed what the listing shows meanwhile, by what they recorded or took out of the records.
                if not self._is_far or self.side.ledger.sequence == sequence:
                    raise

    def _commit(self, work: Callable[[], T]) -> Answer[T]:
        """Do what ends in a commit: at once where that is a local disk, which is faster than changing threads."""
        return self._in_pool(work) if self._is_far else work()

    async def _in_pool(self, work: Callable[[], T]) -> T:
        """Run what blocks on the disk. A signal does not end the wait: a change that is made anyway must not be answered EINTR."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        while True:
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if future.cancelled() or task is None:
                    raise
                task.uncancel()

    def _path(self, parent: int, name: bytes) -> bytes:
        refuse_long(name)
        folder = self.view.place(parent)
        return folder + b"/" + name if folder else name

    def _tree_of(self, file: OpenFile) -> TreeNode:
        """The node of a file that was just made. Raises FileNotFoundError if another mount has removed it already."""
        tree = self.side.state.by_id.get(file.node_id)
        if tree is None:
            file.release()
            raise FileNotFoundError(errno.ENOENT, "the file is gone")
        return tree

    def _is_gone(self, ino: int) -> bool:
        node_id = self.view.node_id(ino)
        return node_id is not None and node_id not in self.side.state.by_id

    def _shown_of(self, ino: int) -> Shown:
        """What the listing shows of an inode that has no node."""
        if self.view.node_id(ino) is not None:
            return None
        node = self.view.live.node(ino)
        if node.kind == Kind.DIRECTORY:
            return ListedFolder()
        return Listed(self.view.live.version(ino), node.mtime_ns)

    def _opened(self, file: OpenFile) -> int:
        handle = next(self._handle_numbers)
        self._files[handle] = file
        return handle

    def _file(self, handle: int) -> OpenFile:
        file = self._files.get(handle)
        if file is None:
            raise OSError(errno.EBADF, f"no open file {handle}")
        return file
