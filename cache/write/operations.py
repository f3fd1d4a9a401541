"""What each operation on names changes: pure functions over a `Step`, the rules of the tree in one place.

An operation gets what the listing of the under store shows where no node decides (`Listed`, `ListedFolder`), because
asking it is I/O and is done before. The rules that all of them keep:

- A name is removed by removing its node; a whiteout takes its place if the listing may show something there.
- Every object that stood for the name is doomed, under the key and etag it had.
- A folder whose last entry goes keeps standing: it gets a marker.
"""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ...errors import OpenElsewhere
from ...tiers.version import ObjectVersion
from .ledger import Step
from .nodes import EMPTY, ROOT_ID, Doomed, Kind, Node, Remote
from .state import Below, State

# The longest object key of S3. What could never reach the bucket is refused when it is made, and not acked.
KEY_BYTES = 1024

_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the listing has it."""

    version: ObjectVersion
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ListedFolder:
    """A folder as the listing has it: there are keys below its prefix."""


Shown = Listed | ListedFolder | None


@dataclass(frozen=True, slots=True)
class Attributes:
    mode: int
    uid: int
    gid: int


@dataclass(slots=True)
class Operations:
    """`writer` is this process; `now_ns` the wall clock; `file` and `folder` are what entries of the listing are shown with.

    Where records are shared (`is_shared`), everything is recorded at once, because others must see it: a file that was created,
    and who has it open for writing.
    """

    writer: int
    now_ns: Callable[[], int]
    file: Attributes
    folder: Attributes
    is_shared: bool = False

    # --- Making. -----------------------------------------------------------------------------------------

    def ensure_folder(self, step: Step, state: State, path: bytes) -> Node:
        """The folder node at `path`, made for what the listing shows there if need be. Raises NotADirectoryError, FileNotFoundError."""
        node = state.root
        for name in path.split(b"/") if path else []:
            child = state.child(node.id, name)
            if child is None:
                if node.lower is None:
                    raise _missing(path)
                child = self._new(
                    state,
                    node,
                    name,
                    Kind.DIRECTORY,
                    self.folder,
                    generation=1,
                    lower=node.lower + name + b"/",
                    covers=True,
                )
                step.rely_on(node)
                step.put(child)
            elif child.kind == Kind.WHITEOUT:
                raise _missing(path)
            elif child.kind != Kind.DIRECTORY:
                raise _no_folder(path)
            node = child
        return node

    def create(self, step: Step, state: State, path: bytes, attributes: Attributes, shown: Shown) -> Node:
        """A new, empty file, which where nobody shares the records none of them knows yet. Raises FileExistsError."""
        _refuse_long(state, path)
        parent, name = self._parent(step, state, path)
        covers = self._free_slot(state, parent, name, shown)
        node = self._new(state, parent, name, Kind.FILE, attributes, covers=covers)
        if self.is_shared:
            node = msgspec.structs.replace(node, generation=1, dirty_since_ns=self.now_ns(), open_by=self.writer)
        step.put(node, recorded=self.is_shared)
        return node

    def adopt(self, step: Step, state: State, path: bytes, listed: Listed) -> Node:
        """A node for a file that the listing shows, to be changed. Unrecorded, because nothing is changed yet, unless others must know."""
        parent, name = self._parent(step, state, path)
        remote = Remote.of(listed.version)
        node = self._new(
            state, parent, name, Kind.FILE, self.file, size=remote.size, base=remote, base_limit=remote.size,
            remote=remote, covers=True, mtime_ns=listed.mtime_ns, generation=int(self.is_shared),
        )  # fmt: skip
        step.put(node, recorded=self.is_shared)
        return node

    def claim(self, step: Step, state: State, node: Node) -> Node:
        """Have a file open for writing, alone among those who share the records. Raises OpenElsewhere, naming who has it."""
        if not self.is_shared or node.open_by == self.writer:
            return node
        other = state.other_writer(node, self.writer)
        if other is not None:
            raise OpenElsewhere(
                f"{os.fsdecode(node.name)} is open for writing by {other.label}", remedy="close it there"
            )
        claimed = msgspec.structs.replace(node, open_by=self.writer)
        step.put(claimed)
        return claimed

    def mkdir(self, step: Step, state: State, path: bytes, attributes: Attributes, shown: Shown) -> Node:
        _refuse_long(state, path + b"/")
        parent, name = self._parent(step, state, path)
        covers = self._free_slot(state, parent, name, shown)
        # Opaque: there is nothing to show through, and so nothing to be asked for what is made in it. See `Retirement`.
        node = self._new(
            state, parent, name, Kind.DIRECTORY, attributes, generation=1, dirty_since_ns=self.now_ns(), covers=covers
        )
        step.put(node)
        return node

    def symlink(
        self, step: Step, state: State, path: bytes, target: bytes, attributes: Attributes, shown: Shown
    ) -> Node:
        _refuse_long(state, path)
        parent, name = self._parent(step, state, path)
        covers = self._free_slot(state, parent, name, shown)
        node = self._new(
            state, parent, name, Kind.SYMLINK, attributes, generation=1, dirty_since_ns=self.now_ns(), target=target,
            size=len(target), covers=covers,
        )  # fmt: skip
        step.put(node)
        return node

    # --- Changing. ---------------------------------------------------------------------------------------

    def node_at(self, step: Step, state: State, path: bytes, shown: Shown) -> Node:
        """The node at `path`, made for what the listing shows if need be. Raises FileNotFoundError."""
        found = state.resolve(path)
        if isinstance(found, Node):
            return found
        if isinstance(found, Below):
            if isinstance(shown, Listed):
                return self.adopt(step, state, path, shown)
            if isinstance(shown, ListedFolder):
                return self.ensure_folder(step, state, path)
        raise _missing(path)

    def change(self, step: Step, node: Node, **fields: object) -> Node:
        """Change attributes of a node, which makes it dirty. A file that was never recorded stays so."""
        now_ns = self.now_ns()
        fields.setdefault("ctime_ns", now_ns)
        if node.id == ROOT_ID:
            raise PermissionError(errno.EPERM, "the top of a mount has the attributes of the mount")
        if node.is_recorded or node.base is not None:
            fields["generation"] = node.generation + 1
            fields["dirty_since_ns"] = node.dirty_since_ns or now_ns
            fields["writer"] = self.writer
        changed = msgspec.structs.replace(node, **fields)
        step.put(changed, recorded=changed.is_recorded)
        return changed

    # --- Removing and moving. ----------------------------------------------------------------------------

    def unlink(self, step: Step, state: State, path: bytes, shown: Shown, *, keep_inline: bool) -> Node | None:
        """Remove a file or link; the node it had. `keep_inline`: somebody has it open and still reads it.

        Raises FileNotFoundError, IsADirectoryError.
        """
        parent, name = self._parent(step, state, path)
        node = self._live(state, parent, name, shown, path)
        if isinstance(shown, ListedFolder) or (node is not None and node.kind == Kind.DIRECTORY):
            raise _a_folder(path)
        self._vacate(step, state, parent, name, node, shown, keep_inline=keep_inline)
        self._keep_folder(step, state, parent)
        return node

    def rmdir(self, step: Step, state: State, path: bytes, shown: Shown) -> None:
        """Remove a folder. The caller has seen that the listing shows nothing in it but what nodes hide.

        Raises OSError ENOTEMPTY if nodes show something, FileNotFoundError, NotADirectoryError.
        """
        step.is_strict = True  # others may be about to put something in it
        parent, name = self._parent(step, state, path)
        node = self._live(state, parent, name, shown, path)
        if isinstance(shown, Listed) or (node is not None and node.kind != Kind.DIRECTORY):
            raise _no_folder(path)
        self._vacate_folder(step, state, parent, name, node)
        self._keep_folder(step, state, parent)

    def rename(
        self, step: Step, state: State, old: bytes, new: bytes, shown_old: Shown, shown_new: Shown,
        *, keep_inline: bool = False, replace: bool = True,
    ) -> Node | None:  # fmt: skip
        """Move a name onto another; the file node that was replaced, if one was. Raises what rename(2) says.

        A folder must be replaced by a folder, and an empty one (the caller has seen that the listing shows nothing in it).
        Raises OSError ENAMETOOLONG also where something below would get too long a key, as far as that is known.
        """
        if new.startswith(old + b"/"):
            raise OSError(errno.EINVAL, "a folder cannot be moved into itself", os.fsdecode(new))
        old_parent, old_name = self._parent(step, state, old)
        new_parent, new_name = self._parent(step, state, new)
        self._live(state, old_parent, old_name, shown_old, old)
        source = self.node_at(step, state, old, shown_old)
        if len(new) > len(old):
            _refuse_long(state, new, _longest_below(state, source))
        try:
            victim = self._live(state, new_parent, new_name, shown_new, new)
            victim_is_folder = isinstance(shown_new, ListedFolder) or (
                victim is not None and victim.kind == Kind.DIRECTORY
            )
            there = True
        except FileNotFoundError:
            victim, victim_is_folder, there = None, False, False
        if old == new:
            return None
        # Folders moved into each other by two mounts at once would hang in the air, and so would what others put into the victim.
        step.is_strict = source.kind == Kind.DIRECTORY or victim_is_folder
        if there and not replace:
            raise _exists(new)
        if there and source.kind == Kind.DIRECTORY and not victim_is_folder:
            raise _no_folder(new)
        if there and source.kind != Kind.DIRECTORY and victim_is_folder:
            raise _a_folder(new)
        if victim_is_folder:
            self._vacate_folder(step, state, new_parent, new_name, victim)
        elif there:
            self._vacate(step, state, new_parent, new_name, victim, shown_new, keep_inline=keep_inline)
        covers = state.child(new_parent.id, new_name) is not None  # a whiteout
        self._vacate(step, state, old_parent, old_name, source, shown_old, keep_inline=True)
        self._keep_folder(step, state, old_parent)
        self._place(step, source, new_parent, new_name, covers=covers)
        return victim if not victim_is_folder else None

    def exchange(
        self, step: Step, state: State, first: bytes, second: bytes, shown_first: Shown, shown_second: Shown
    ) -> None:
        """Swap two names, of whatever kind. Both must be there."""
        if first.startswith(second + b"/") or second.startswith(first + b"/"):
            raise OSError(errno.EINVAL, "a folder cannot be moved into itself", os.fsdecode(second))
        one = self.node_at(step, state, first, shown_first)
        two = self.node_at(step, state, second, shown_second)
        if one.id == two.id:
            return
        step.is_strict = True
        # Neither object is doomed: each key is about to be published again, by the other.
        step.remove(one)
        step.remove(two)
        for node, parent, name in ((one, two.parent, two.name), (two, one.parent, one.name)):
            place = state.by_id[parent]
            self._place(step, node, place, name, covers=True, keep_remote=True)

    # --- Inside. -----------------------------------------------------------------------------------------

    def _parent(self, step: Step, state: State, path: bytes) -> tuple[Node, bytes]:
        """The folder whose entries are about to change, and the name in it."""
        folder, _, name = path.rpartition(b"/")
        parent = self.ensure_folder(step, state, folder)
        step.rely_on(parent)
        state.touched[parent.id] = self.now_ns()
        return parent, name

    def _new(
        self, state: State, parent: Node, name: bytes, kind: Kind, attributes: Attributes, **fields: object
    ) -> Node:
        now_ns = self.now_ns()
        identity = _random.getrandbits(62) | (1 << 62)
        fields.setdefault("mtime_ns", now_ns)
        return Node(
            identity, parent.id, name, kind, attributes.mode, attributes.uid, attributes.gid,
            ctime_ns=now_ns, writer=self.writer, **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    def _free_slot(self, state: State, parent: Node, name: bytes, shown: Shown) -> bool:
        """Whether something in the listing is covered by a new node there. Raises FileExistsError if the name is taken."""
        child = state.child(parent.id, name)
        if child is not None:
            if child.kind != Kind.WHITEOUT:
                raise _exists(name)
            return True
        if shown is not None and parent.lower is not None:
            raise _exists(name)
        return False

    def _live(self, state: State, parent: Node, name: bytes, shown: Shown, path: bytes) -> Node | None:
        """The node of an existing name, or None if only the listing has it. Raises FileNotFoundError."""
        child = state.child(parent.id, name)
        if child is None:
            if shown is None or parent.lower is None:
                raise _missing(path)
            return None
        if child.kind == Kind.WHITEOUT:
            raise _missing(path)
        return child

    def _vacate(
        self, step: Step, state: State, parent: Node, name: bytes, node: Node | None, shown: Shown, *, keep_inline: bool
    ) -> None:
        """Take a name away from its node or listed object."""
        covers = shown is not None
        is_folder = node is not None and node.kind == Kind.DIRECTORY
        if node is not None:
            key = state.key_of(node)
            covers = node.covers or node.remote is not None or node.id in state.attempt_of or key in state.doomed
            step.remove(node, recorded=node.is_recorded)
            if node.remote is not None:
                self._doom(step, state, node.remote.key, EMPTY if is_folder else node.remote.etag)
            if is_folder and key is not None:
                self._doom(step, state, key, EMPTY)
            if node.inline and node.data and not keep_inline:
                step.drop_inline.append(node.data)
        elif isinstance(shown, Listed):
            remote = Remote.of(shown.version)
            self._doom(step, state, remote.key, remote.etag)
        if is_folder or (covers and parent.lower is not None):
            self._white_out(step, parent, name)

    def _vacate_folder(self, step: Step, state: State, parent: Node, name: bytes, node: Node | None) -> None:
        markers = set()
        if node is not None:
            for child in list(state.children.get(node.id, {}).values()):
                if child.kind != Kind.WHITEOUT:
                    raise OSError(errno.ENOTEMPTY, "folder is not empty", os.fsdecode(name))
                step.remove(child)
            markers = {state.key_of(node), node.lower, node.remote.key if node.remote is not None else None}
            step.remove(node)
        elif parent.lower is not None:
            markers = {parent.lower + name + b"/"}
        for marker in markers - {None}:
            assert marker is not None
            self._doom(step, state, marker, EMPTY)
        self._white_out(step, parent, name)

    def _white_out(self, step: Step, parent: Node, name: bytes) -> None:
        """Hide what the listing may show under a name.

        Of a folder also below an opaque one: what was in it may still be in the bucket, and stores that are file systems inside
        show a folder for a while after its last key went, when the one above may be opaque no more.
        """
        step.put(Node(0, parent.id, name, Kind.WHITEOUT, ctime_ns=self.now_ns(), generation=1))

    def _place(
        self, step: Step, node: Node, parent: Node, name: bytes, *, covers: bool, keep_remote: bool = False
    ) -> None:
        """Put a node that was taken from its slot into another."""
        now_ns = self.now_ns()
        moved = msgspec.structs.replace(
            node, parent=parent.id, name=name, ctime_ns=now_ns, covers=covers, writer=self.writer,
            remote=node.remote if keep_remote else None,
            moving=node.kind == Kind.DIRECTORY,
            dirty_since_ns=node.dirty_since_ns or now_ns,
            generation=node.generation + 1,
        )  # fmt: skip
        step.put(moved)

    def _keep_folder(self, step: Step, state: State, folder: Node) -> None:
        """Make sure that a folder that may just have lost its last key gets a marker."""
        folder = state.by_id[folder.id]
        if folder.id == ROOT_ID or folder.is_dirty or folder.remote is not None:
            return
        self.send_marker(step, folder)

    def send_marker(self, step: Step, folder: Node) -> None:
        """Have the marker of a folder published (once more)."""
        step.put(
            msgspec.structs.replace(
                folder,
                dirty_since_ns=folder.dirty_since_ns or self.now_ns(),
                generation=folder.generation + 1,
                writer=self.writer,
            )
        )

    def doom(self, step: Step, state: State, key: bytes, etag: str, *, recheck: bool = False) -> None:
        """Have an object deleted, in place of what was to be deleted under the key; what was sent for that may still arrive."""
        if key.endswith(b"/"):
            etag = EMPTY  # markers are all alike, and SeaweedFS gives the same one another etag while keys are below it
        known = state.doomed.get(key)
        sends = 0 if known is None else known.sends
        step.put(Doomed(key, etag, self.now_ns(), recheck=recheck, writer=self.writer, sends=sends))

    def _doom(self, step: Step, state: State, key: bytes, etag: str) -> None:
        known = state.doomed.get(key)
        if known is None or known.etag != etag or known.is_gone:
            self.doom(step, state, key, etag, recheck=known is not None and known.recheck)


def _refuse_long(state: State, path: bytes, below: int = 0) -> None:
    if len(state.prefix) + len(path) + below > KEY_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"object keys have at most {KEY_BYTES} bytes", os.fsdecode(path))


def _longest_below(state: State, node: Node) -> int:
    """How many bytes the longest key below a folder adds to its path, as far as nodes tell."""
    if node.kind != Kind.DIRECTORY:
        return 0
    lengths = {node.id: 1}
    for child in state.below(node):
        if child.kind != Kind.WHITEOUT:
            lengths[child.id] = lengths[child.parent] + len(child.name) + (child.kind == Kind.DIRECTORY)
    return max(lengths.values())


def _missing(path: bytes) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such file or folder", os.fsdecode(path))


def _exists(path: bytes) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "the name is taken", os.fsdecode(path))


def _no_folder(path: bytes) -> NotADirectoryError:
    return NotADirectoryError(errno.ENOTDIR, "not a folder", os.fsdecode(path))


def _a_folder(path: bytes) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, "a folder", os.fsdecode(path))
