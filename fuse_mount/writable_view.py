"""`View` of a mount that writes: the nodes of the write side laid over a live view.

**Who answers.** A name that has a node is shown as the node; a whiteout, or a folder that shows nothing of the listing, means
absent; every other name is the live view's, asked in the folder whose prefix shows through (`Node.lower`), which after a
rename is not the folder's own path.

**Inodes.** A node has its id as inode number: above 2^62, stable for as long as the node lives, and across mounts. A file or
folder that the kernel knows from the live view already keeps that number when it gets a node (it is *aliased*), so that
open files, mappings and working directories go on. Live inodes are below 2^32; nothing collides.

An inode of a node is not one version of a path: it stays while its content changes, as of any local file. The kernel made the
changes itself, so what it keeps is right.

Aliases are found lazily: background work (relocation, conflicts) makes and moves nodes without asking who knows them. So a live
folder is matched with the tree once more whenever folder nodes have come or gone.

**Where other mounts write too** (the records are shared), the kernel keeps no name: each lookup comes here, and waits until everything
is known that was committed before it (`cache.write.freshness`). So whoever opens a file after another mount closed it sees that.
"""

import errno
import json
import threading
from collections.abc import Iterator, Mapping

import msgspec

from ..cache.write.nodes import ROOT_ID
from ..cache.write.nodes import Kind as NodeKind
from ..cache.write.nodes import Node as TreeNode
from ..cache.write.operations import Listed, ListedFolder, Shown
from ..cache.write.write_side import WriteSide
from ..tiers.version import ObjectVersion
from .live_view import LiveView
from .view import ROOT_INO, Absent, Directory, DirEntry, Kind, Node

# How long the kernel may keep the name of a node: background work may move one (a conflict), and then it asks again.
NAME_TTL_S = 1.0
# Our own folder at the top of the prefix (copies of exchanged files); never shown.
HIDDEN = b".forebay"
NAME_BYTES = 255
_NODES_FROM = 1 << 62
# Cookies of nodes in a listing come after all of the live view's.
_NODE_COOKIES = 1 << 48


class Unknown:
    """What the listing shows is not known now, and must be asked."""


UNKNOWN = Unknown()


class WritableView:
    """Implements `View`. Both sides stay the caller's."""

    def __init__(self, live: LiveView, side: WriteSide) -> None:
        self.live = live
        self.side = side
        self._state = side.state
        self._is_shared = side.freshness is not None
        self._lock = threading.RLock()
        self._node_of: dict[int, int] = {ROOT_INO: ROOT_ID}
        self._ino_of: dict[int, int] = {ROOT_ID: ROOT_INO}
        self._lookups: dict[int, int] = {}
        # The live folders that show, or showed, through a folder node, by prefix; the kernel may still know files of each.
        self._through: dict[int, dict[bytes, int]] = {}
        # Which inode of ours such a folder belongs to, for those that have no place in the live view.
        self._owner: dict[int, int] = {}
        # Attributes of nodes that are gone while the kernel still knows them.
        self._last: dict[int, TreeNode] = {}
        self._matched: dict[int, int] = {}
        side.files.on_put_back = self._put_back

    @property
    def negative_ttl_s(self) -> float:
        return 0.0

    # --- Names. ------------------------------------------------------------------------------------------

    def peek(self, parent: int, name: bytes) -> Node | Absent | None:
        refuse_long(name)
        if self._is_shared:
            return None
        with self._lock:
            folder = self._folder(parent)
            if folder is not None:
                found = self._in_tree(folder, name)
                if found is not None:
                    return found
                parent = self._live_folder(parent, folder)
            live = self.live.peek(parent, name)
            return self._from_live(live) if isinstance(live, Node) else live

    async def lookup(self, parent: int, name: bytes) -> Node | Absent:
        refuse_long(name)
        await self._look()
        with self._lock:
            folder = self._folder(parent)
            live_parent = parent
            if folder is not None:
                found = self._in_tree(folder, name)
                if found is not None:
                    return found
                live_parent = self._live_folder(parent, folder)
        live = await self.live.lookup(live_parent, name)
        with self._lock:
            folder = self._folder(parent)
            found = self._in_tree(folder, name) if folder is not None else None
            if found is not None:  # made or removed while the store was asked
                if isinstance(live, Node):
                    self.live.forget(live.ino, 1)
                return found
            return self._from_live(live) if isinstance(live, Node) else live

    def shown(self, parent: int, name: bytes) -> tuple[Shown, int] | Unknown:
        """What the listing shows under a name that no node decides, and its live inode (0: none); UNKNOWN without I/O."""
        with self._lock:
            folder = self._folder(parent)
            if folder is not None:
                if folder.lower is None or self._state.child(folder.id, name) is not None:
                    return None, 0
                parent = self._live_folder(parent, folder)
            live = self.live.peek(parent, name)
            return UNKNOWN if live is None else self._as_shown(live)

    async def shown_later(self, parent: int, name: bytes) -> tuple[Shown, int]:
        """`shown`, asking the store. Raises StoreError."""
        await self._look()
        found = self.shown(parent, name)
        if not isinstance(found, Unknown):
            return found
        with self._lock:
            folder = self._folder(parent)
            live_parent = parent if folder is None else self._live_folder(parent, folder)
        return self._as_shown(await self.live.lookup(live_parent, name))

    def _as_shown(self, live: Node | Absent) -> tuple[Shown, int]:
        if isinstance(live, Absent):
            return None, 0
        try:
            if live.kind == Kind.DIRECTORY:
                return ListedFolder(), live.ino
            return Listed(self.live.version(live.ino), live.mtime_ns), live.ino
        finally:
            self.live.forget(live.ino, 1)

    async def has_entries(self, ino: int) -> bool:
        """Whether a folder shows anything. Raises StoreError rather than guess."""
        await self._look()
        with self._lock:
            folder = self._folder(ino)
            nodes = dict(self._state.children.get(folder.id, {})) if folder is not None else {}
            if any(node.kind != NodeKind.WHITEOUT for node in nodes.values()):
                return True
            if folder is not None and folder.lower is None:
                return False
            live_ino = ino if folder is None else self._live_folder(ino, folder)
        directory = await self.live.open_directory(live_ino)
        return any(entry.name not in nodes for entry in directory.read(0, plus=False))

    # --- Inodes. -----------------------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        with self._lock:
            tree = self.tree_node(ino)
            return self.live.node(ino) if tree is None else self.shape(tree, ino)

    def tree_node(self, ino: int) -> TreeNode | None:
        """The node behind an inode, also one that is gone and still open; None for the live view's."""
        with self._lock:
            node_id = self._node_of.get(ino)
            if node_id is None:
                return None
            found = self._state.by_id.get(node_id)
            if found is not None:
                self._last[ino] = found
                return found
            return self._last.get(ino)

    def node_id(self, ino: int) -> int | None:
        with self._lock:
            return self._node_of.get(ino)

    def version(self, ino: int) -> ObjectVersion:
        tree = self.tree_node(ino)
        if tree is None:
            return self.live.version(ino)
        if tree.kind == NodeKind.DIRECTORY:
            raise IsADirectoryError(self.path(ino))
        if tree.remote is not None:
            return tree.remote.version(self.side.store.id)
        key = self._state.key_of(tree) or tree.name
        return ObjectVersion(self.side.store.id, key.decode("utf-8", "surrogateescape"), "", tree.size)

    def path(self, ino: int) -> bytes:
        return self._path(ino, even_if_gone=True)

    def place(self, ino: int) -> bytes:
        """The path of what is still there. Raises FileNotFoundError if it, or a folder around it, was removed."""
        return self._path(ino, even_if_gone=False)

    def _path(self, ino: int, *, even_if_gone: bool) -> bytes:
        with self._lock:
            names: list[bytes] = []
            while True:
                tree = self.tree_node(ino)
                if tree is not None:
                    found = self._state.path_of(tree)
                    if not even_if_gone and (found is None or tree.id not in self._state.by_id):
                        raise FileNotFoundError(errno.ENOENT, "it was removed")
                    names.append(found if found is not None else tree.name)
                    break
                owner = self._owner.get(ino)
                if owner is not None:
                    ino = owner
                    continue
                ino, name = self.live.place_of(ino)
                names.append(name)
                if not ino:
                    break
            return b"/".join(name for name in reversed(names) if name)

    def xattrs(self, ino: int) -> Mapping[str, bytes]:
        """Of a node: `user.forebay.state` and where it is durable (JSON in `user.forebay.durable`), and its own attributes."""
        tree = self.tree_node(ino)
        if tree is None:
            return self.live.xattrs(ino)
        found = {name.decode("utf-8", "surrogateescape"): value for name, value in (tree.xattrs or {}).items()}
        where = self.side.whereabouts(self.path(ino)) if tree.kind == NodeKind.FILE else None
        if where is not None:
            found["user.forebay.state"] = where.state.encode()
            facts = {"stored_bytes": where.stored_bytes, "stored_in": where.stored_in, "failure": where.failure}
            found["user.forebay.durable"] = json.dumps(facts).encode()
        return found

    def forget(self, ino: int, count: int) -> None:
        with self._lock:
            if ino < _NODES_FROM:
                self.live.forget(ino, count)
                if ino != ROOT_INO and not self.live.holds(ino):
                    self._matched.pop(ino, None)
                    self._drop(ino)
                return
            left = self._lookups.get(ino, 0) - count
            if left < 0:
                raise ValueError(f"inode {ino} is forgotten more often than it was looked up")
            if left:
                self._lookups[ino] = left
            else:
                self._lookups.pop(ino, None)
                self._drop(ino)

    def in_use(self, node_id: int) -> bool:
        """Whether the kernel knows a node."""
        return node_id in self._ino_of

    @property
    def inodes_held(self) -> int:
        return self.live.inodes_held + len(self._lookups)

    # --- Changes. ----------------------------------------------------------------------------------------

    def adopt(self, ino: int, node_id: int) -> None:
        """An inode of the live view, if it is held, is that of a node from now on."""
        with self._lock:
            if ino and ino < _NODES_FROM and node_id not in self._ino_of and self.live.holds(ino):
                self._drop(ino)
                self._node_of[ino] = node_id
                self._ino_of[node_id] = ino
                if (tree := self._state.by_id.get(node_id)) is not None:
                    self._last[ino] = tree

    def match_child(self, parent: int, name: bytes) -> None:
        """Before a name is moved: if it has a node that the kernel still knows by the live view's inode, that inode is the node's.

        Nodes of folders come about without the kernel asking for them, because of what is written below; under the new name nobody
        could tell that they belong together.
        """
        with self._lock:
            folder = self._folder(parent)
            child = self._state.child(folder.id, name) if folder is not None else None
            if folder is not None and child is not None and folder.lower is not None and child.id not in self._ino_of:
                self.adopt(self.live.held(self._live_folder(parent, folder), name), child.id)

    def _put_back(self, node_id: int) -> None:
        """A node is gone because nothing was changed: its inode is that of the live view again."""
        with self._lock:
            ino = self._ino_of.get(node_id)
            if ino is not None and ino < _NODES_FROM:
                self._drop(ino)

    def change_gone(self, ino: int, given: Mapping[str, int | None]) -> None:
        """Attributes of a file that was deleted and is open still: they are shown while it is."""
        with self._lock:
            last = self._last.get(ino)
            if last is None:
                return
            self._last[ino] = msgspec.structs.replace(
                last, **{name: value for name, value in given.items() if value is not None}
            )
            draft = self.side.files.drafts.get(last.id)
            mtime_ns = given["mtime_ns"]
            if draft is not None and mtime_ns is not None:
                draft.mtime_ns = mtime_ns

    def found(self, tree: TreeNode) -> Node:
        """What the kernel is told of a node, with a lookup counted."""
        with self._lock:
            ino = self._ino_of.get(tree.id)
            if ino is None:
                ino = tree.id
                self._ino_of[tree.id] = ino
                self._node_of[ino] = tree.id
            if ino < _NODES_FROM:
                if ino != ROOT_INO:
                    self.live.hold(ino)
            else:
                self._lookups[ino] = self._lookups.get(ino, 0) + 1
            self._last[ino] = tree
            return self.shape(tree, ino)

    def shape(self, tree: TreeNode, ino: int) -> Node:
        size, mtime_ns = tree.size, tree.mtime_ns
        draft = self.side.files.drafts.get(tree.id)
        if draft is not None:
            size, mtime_ns = draft.size, draft.mtime_ns
        elif tree.kind == NodeKind.DIRECTORY:
            if not tree.parent:
                mtime_ns = self.live.node(ROOT_INO).mtime_ns
            mtime_ns = max(mtime_ns, self._state.touched.get(tree.id, 0))
        return Node(ino, Kind(int(tree.kind)), size, mtime_ns, 0.0 if self._is_shared else NAME_TTL_S)

    async def _look(self) -> None:
        if self.side.freshness is not None:
            await self.side.freshness.look()

    # --- Folders. ----------------------------------------------------------------------------------------

    async def open_directory(self, ino: int) -> Directory:
        await self._look()
        with self._lock:
            folder = self._folder(ino)
            if folder is None:
                nodes, live_ino = {}, ino
            else:
                nodes = dict(self._state.children.get(folder.id, {}))
                live_ino = self._live_folder(ino, folder) if folder.lower is not None else 0
        below = await self.live.open_directory(live_ino) if live_ino else None
        return WritableDirectory(self, below, nodes, is_top=ino == ROOT_INO)

    # --- With the lock held. -----------------------------------------------------------------------------

    def _folder(self, ino: int) -> TreeNode | None:
        """The folder node behind a folder inode, or None for a folder that has none."""
        node_id = self._node_of.get(ino)
        if node_id is None:
            return self._match(ino)
        node = self._state.by_id.get(node_id)
        if node is None:
            last = self._last.get(ino)
            if last is None or last.kind != NodeKind.DIRECTORY:
                raise NotADirectoryError(20, "not a folder")
            raise FileNotFoundError(2, "the folder is gone")
        if node.kind != NodeKind.DIRECTORY:
            raise NotADirectoryError(20, "not a folder")
        return node

    def _match(self, ino: int) -> TreeNode | None:
        """See whether a live folder has a node by now."""
        epoch = self._state.folder_changes
        if self._matched.get(ino) == epoch:
            return None
        found = self._state.resolve(self.path(ino))
        if isinstance(found, TreeNode) and found.kind == NodeKind.DIRECTORY:
            self.adopt(ino, found.id)
            if self._node_of.get(ino) == found.id:
                return found
        self._matched[ino] = epoch
        return None

    def _in_tree(self, folder: TreeNode, name: bytes) -> Node | Absent | None:
        """The answer of the tree, with a lookup counted; None if the listing decides."""
        child = self._state.child(folder.id, name)
        if child is not None:
            return Absent.ABSENT if child.kind == NodeKind.WHITEOUT else self.found(child)
        if folder.lower is None or (name == HIDDEN and folder.id == ROOT_ID):
            return Absent.ABSENT
        return None

    def _from_live(self, live: Node) -> Node:
        """A node of the live view under its own name. If its inode was aliased, that was under another name or is over."""
        if live.ino in self._node_of and live.ino != ROOT_INO:
            node_id = self._node_of.pop(live.ino)
            self._ino_of.pop(node_id, None)
            self._last.pop(live.ino, None)
        return self.listed(live)

    def listed(self, live: Node) -> Node:
        """A node of the live view as the kernel may keep it."""
        return live._replace(entry_ttl_s=0.0) if self._is_shared else live

    def _live_folder(self, ino: int, folder: TreeNode) -> int:
        """The live inode of the folder that shows through; held until the folder is forgotten."""
        assert folder.lower is not None
        through = self._through.setdefault(ino, {})
        found = through.get(folder.lower)
        if found is None:
            if ino < _NODES_FROM and self.live.prefix_of(ino) == folder.lower:
                found = ino
            else:
                found = self.live.folder_at(folder.lower)
                self._owner[found] = ino
            through[folder.lower] = found
        return found

    def _drop(self, ino: int) -> None:
        node_id = self._node_of.pop(ino, None)
        if node_id is not None and self._ino_of.get(node_id) == ino:
            del self._ino_of[node_id]
        self._last.pop(ino, None)
        for live_ino in self._through.pop(ino, {}).values():
            if live_ino != ino:
                del self._owner[live_ino]
                self.live.forget(live_ino, 1)


def refuse_long(name: bytes) -> None:
    """A name that no file can have is told from one that no file has."""
    if len(name) > NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"names have at most {NAME_BYTES} bytes")


class WritableDirectory:
    """One open folder: the listing of that moment, without what nodes hide, then the nodes of that moment."""

    def __init__(
        self, view: WritableView, below: Directory | None, nodes: Mapping[bytes, TreeNode], *, is_top: bool
    ) -> None:
        self._view = view
        self._below = below
        self._hidden = set(nodes) | ({HIDDEN} if is_top else set())
        self._nodes = [(name, node) for name, node in sorted(nodes.items()) if node.kind != NodeKind.WHITEOUT]

    def read(self, cookie: int, *, plus: bool) -> Iterator[DirEntry]:
        if cookie < _NODE_COOKIES and self._below is not None:
            for entry in self._below.read(cookie, plus=plus):
                if entry.name not in self._hidden:
                    yield DirEntry(entry.name, self._view.listed(entry.node), entry.cookie) if plus else entry
                elif plus:
                    self._view.live.forget(entry.node.ino, 1)
        for index in range(max(cookie - _NODE_COOKIES, 0), len(self._nodes)):
            name, tree = self._nodes[index]
            node = self._view.found(tree) if plus else self._view.shape(tree, tree.id)
            yield DirEntry(name, node, _NODE_COOKIES + index + 1)
