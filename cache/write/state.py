"""What the write side knows, in memory: the tree, objects to delete, uploads begun, and the orders and sums over them.

Pure: no I/O, no clock, no locks (`Ledger` holds the lock). Everything changes through `put` and `remove`, which keep the
derived indexes right and give back what was there before. `validate` computes them anew; tests call it often.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .nodes import LEASE_KEY, MARK_KEY, ROOT_ID, Attempt, Doomed, Entry, Kind, Lease, Node, TierMark, Writer, node_key


@dataclass(frozen=True, slots=True)
class Below:
    """No node decides this path: the listing of the under store does. `key` is what to look for there, as file or folder."""

    key: bytes


class State:
    """`prefix` is the key prefix of the mount, empty or ending in a slash."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.root = Node(id=ROOT_ID, parent=0, name=b"", kind=Kind.DIRECTORY, mode=0o755, lower=prefix, generation=1)
        self.children: dict[int, dict[bytes, Node]] = {}
        self.by_id: dict[int, Node] = {ROOT_ID: self.root}
        self.doomed: dict[bytes, Doomed] = {}
        self.doomed_below: Counter[bytes] = Counter()  # doomed keys below each prefix that ends in a slash
        self.attempts: dict[str, Attempt] = {}
        self.attempt_of: dict[int, str] = {}
        self.writers: dict[int, Writer] = {}
        self.lease: Lease | None = None
        self.tier_mark: TierMark | None = None
        # Ordered by when they became so: dirty nodes, clean files, whiteouts.
        self.dirty: dict[int, None] = {}
        self.clean: dict[int, None] = {}
        self.whiteouts: dict[tuple[int, bytes], None] = {}
        self.held: dict[int, None] = {}  # clean, with data in the write tier
        self.movers: dict[int, None] = {}  # folders that were moved, and what they show not yet
        self.opaque: dict[int, None] = {}  # folders that show nothing of the listing
        self.base_users: dict[bytes, set[int]] = {}
        self.lowers: dict[bytes, set[int]] = {}  # the folders that show a key prefix
        self.remote_holders: dict[bytes, int] = {}
        # When entries of a folder last changed, for its modification time; known for as long as the process lives.
        self.touched: dict[int, int] = {}
        self.folder_changes = 0  # counts folder nodes that came or went
        self.dirty_bytes = 0
        self.held_bytes = 0  # of clean nodes

    # --- Changing. ---------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> Entry | None:
        """Set an entry; what stood under its key before is given back."""
        if isinstance(entry, Node):
            return self._put_node(entry)
        old: Entry | None
        if isinstance(entry, Doomed):
            old = self.doomed.get(entry.key)
            if old is None:
                self.doomed_below.update(_prefixes(entry.key))
            self.doomed[entry.key] = entry
        elif isinstance(entry, Attempt):
            old = self.attempts.get(entry.nonce)
            self.attempts[entry.nonce] = entry
            self.attempt_of[entry.node] = entry.nonce
        elif isinstance(entry, Writer):
            old = self.writers.get(entry.number)
            self.writers[entry.number] = entry
        elif isinstance(entry, Lease):
            old, self.lease = self.lease, entry
        else:
            old, self.tier_mark = self.tier_mark, entry
        return old

    def remove(self, entry: Entry) -> Entry | None:
        """Remove what stands under the entry's key, and give it back."""
        if isinstance(entry, Node):
            return self._remove_node(entry.parent, entry.name)
        if isinstance(entry, Doomed):
            found = self.doomed.pop(entry.key, None)
            if found is not None:
                self.doomed_below.subtract(_prefixes(entry.key))
                for prefix in _prefixes(entry.key):
                    if not self.doomed_below[prefix]:
                        del self.doomed_below[prefix]
            return found
        if isinstance(entry, Attempt):
            if self.attempt_of.get(entry.node) == entry.nonce:
                del self.attempt_of[entry.node]
            return self.attempts.pop(entry.nonce, None)
        if isinstance(entry, Writer):
            return self.writers.pop(entry.number, None)
        old: Entry | None
        if isinstance(entry, Lease):
            old, self.lease = self.lease, None
        else:
            old, self.tier_mark = self.tier_mark, None
        return old

    def remove_key(self, key: bytes) -> Entry | None:
        """`remove` by record key."""
        found = self.find(key)
        return None if found is None else self.remove(found)

    def find(self, key: bytes) -> Entry | None:
        kind, rest = key[:1], key[1:]
        if kind == b"n":
            return self.child(int.from_bytes(rest[:8], "big"), rest[8:])
        if kind == b"d":
            return self.doomed.get(rest)
        if kind == b"a":
            return self.attempts.get(rest.decode())
        if key == LEASE_KEY:
            return self.lease
        if key == MARK_KEY:
            return self.tier_mark
        return self.writers.get(int(rest))

    def order_by_age(self) -> None:
        """Put what is dirty in the order of becoming so, after records were loaded in theirs."""
        self.dirty = dict.fromkeys(sorted(self.dirty, key=lambda node_id: self.by_id[node_id].dirty_since_ns))

    def _put_node(self, node: Node) -> Node | None:
        folder = self.children.setdefault(node.parent, {})
        old = folder.get(node.name)
        if old is not None:
            # The order of `dirty` and `clean` is the order of becoming so: a node that stays dirty keeps its place.
            self._forget(old, keep_order=old.id == node.id and old.kind == node.kind)
        folder[node.name] = node
        self._note(node)
        return old

    def _remove_node(self, parent: int, name: bytes) -> Node | None:
        folder = self.children.get(parent)
        old = folder.pop(name, None) if folder else None
        if old is None:
            return None
        if not folder:
            del self.children[parent]
        self._forget(old, keep_order=False)
        return old

    def _note(self, node: Node) -> None:
        if node.kind == Kind.WHITEOUT:
            self.whiteouts[node.parent, node.name] = None
            return
        self.by_id[node.id] = node
        if node.is_dirty:
            self.clean.pop(node.id, None)
            self.held.pop(node.id, None)
            if node.is_recorded:
                self.dirty.setdefault(node.id)
            self.dirty_bytes += node.stored_bytes
        else:
            self.dirty.pop(node.id, None)
            if node.is_recorded and node.kind != Kind.DIRECTORY:
                self.clean.setdefault(node.id)
                if node.data:
                    self.held.setdefault(node.id)
                else:
                    self.held.pop(node.id, None)
            self.held_bytes += node.stored_bytes
        if node.kind == Kind.DIRECTORY:
            self.folder_changes += 1
        if node.moving:
            self.movers.setdefault(node.id)
        else:
            self.movers.pop(node.id, None)
        if node.kind == Kind.DIRECTORY and node.lower is None:
            self.opaque.setdefault(node.id)
        else:
            self.opaque.pop(node.id, None)
        if node.lower is not None:
            self.lowers.setdefault(node.lower, set()).add(node.id)
        if node.base is not None:
            self.base_users.setdefault(node.base.key, set()).add(node.id)
        if node.remote is not None:
            self.remote_holders[node.remote.key] = node.id

    def _forget(self, node: Node, *, keep_order: bool) -> None:
        if node.kind == Kind.WHITEOUT:
            self.whiteouts.pop((node.parent, node.name), None)
            return
        if node.is_dirty:
            self.dirty_bytes -= node.stored_bytes
        else:
            self.held_bytes -= node.stored_bytes
        if self.by_id.get(node.id) is node:
            del self.by_id[node.id]
            if not keep_order:
                self.dirty.pop(node.id, None)
                self.clean.pop(node.id, None)
                self.held.pop(node.id, None)
                self.opaque.pop(node.id, None)
                self.movers.pop(node.id, None)
                if node.kind == Kind.DIRECTORY:
                    self.touched.pop(node.id, None)
        if node.lower is not None:
            folders = self.lowers[node.lower]
            folders.discard(node.id)
            if not folders:
                del self.lowers[node.lower]
        if node.base is not None:
            users = self.base_users[node.base.key]
            users.discard(node.id)
            if not users:
                del self.base_users[node.base.key]
        if node.remote is not None and self.remote_holders.get(node.remote.key) == node.id:
            del self.remote_holders[node.remote.key]

    # --- Asking. -----------------------------------------------------------------------------------------

    def child(self, parent: int, name: bytes) -> Node | None:
        folder = self.children.get(parent)
        return folder.get(name) if folder else None

    def resolve(self, path: bytes) -> Node | Below | None:
        """What stands at a path: a node, nothing (None), or what the listing has there (`Below`)."""
        node = self.root
        if not path:
            return node
        names = path.split(b"/")
        for depth, name in enumerate(names):
            if node.kind != Kind.DIRECTORY:
                return None
            child = self.child(node.id, name)
            if child is None:
                return None if node.lower is None else Below(node.lower + b"/".join(names[depth:]))
            if child.kind == Kind.WHITEOUT:
                return None
            node = child
        return node

    def path_of(self, node: Node) -> bytes | None:
        """The path of a node in the mount; None for one that hangs below a node that is gone."""
        names = []
        while node.id != ROOT_ID:
            names.append(node.name)
            parent = self.by_id.get(node.parent)
            if parent is None:
                return None
            node = parent
        return b"/".join(reversed(names))

    def key_of(self, node: Node) -> bytes | None:
        """The object key that belongs to a node's present path; for a folder, of its marker (ends in a slash)."""
        path = self.path_of(node)
        if path is None:
            return None
        key = self.prefix + path
        return key + b"/" if node.kind == Kind.DIRECTORY and key and not key.endswith(b"/") else key

    def is_in_the_way(self, key: bytes) -> bool:
        """Whether an object that will go makes a folder of what is to be a file under `key`, or a file of a folder above it."""
        if self.doomed_below[key.rstrip(b"/") + b"/"] and not key.endswith(b"/"):
            return True
        return any(prefix[:-1] in self.doomed for prefix in _prefixes(key)) or bool(self.moved_from_above(key))

    def moved_from_above(self, key: bytes) -> set[int]:
        """The nodes whose object, under the name that they had, is a file where `key` needs a folder."""
        found: set[int] = set()
        for prefix in _prefixes(key):
            above = prefix[:-1]
            found.update(self.base_users.get(above, ()))
            holder = self.remote_holders.get(above)
            if holder is not None:
                found.add(holder)
        return found

    def moved_from_below(self, key: bytes) -> set[int]:
        """The nodes whose base makes a folder of what is to be a file under `key`. Looks at all bases."""
        folder = key + b"/"
        return {node_id for base, users in self.base_users.items() if base.startswith(folder) for node_id in users}

    def doomed_from(self, key: bytes) -> Iterator[Doomed]:
        """The entries of a key, and of the markers of the folders above it."""
        for one in {key, *_prefixes(key)}:
            if one in self.doomed:
                yield self.doomed[one]

    def is_sent_below(self, marker: bytes) -> bool:
        """Whether an upload is under way, or of unknown outcome, in the folder of a marker."""
        return any(len(one.key) > len(marker) and one.key.startswith(marker) for one in self.attempts.values())

    def shows_elsewhere(self, key: bytes) -> bool:
        """Whether an object under `key` would be seen in a folder that was moved away from there and still shows its old prefix."""
        for prefix in _prefixes(key):
            for folder_id in self.lowers.get(prefix, ()):
                folder = self.by_id[folder_id]
                path = self.path_of(folder)
                if path is None or self.key_of(folder) == prefix:
                    continue
                below = key[len(prefix) :].rstrip(b"/")
                if not below or self.resolve(path + b"/" + below) == Below(key.rstrip(b"/")):
                    return True
        return False

    def is_left_behind(self, prefix: bytes) -> bool:
        """Whether something under a key prefix, or above it, belongs to a folder that was moved away and not gone through yet."""
        for folder_id in self.movers:
            folder = self.by_id[folder_id]
            lower = folder.lower
            if (
                lower is not None
                and (lower.startswith(prefix) or prefix.startswith(lower))
                and lower != self.key_of(folder)
            ):
                return True
        return False

    def other_writer(self, node: Node, me: int) -> Writer | None:
        """Who else, alive, has a file open for writing."""
        return self.writers.get(node.open_by) if node.open_by and node.open_by != me else None

    def below(self, node: Node) -> Iterator[Node]:
        """All nodes below a folder node, whiteouts too, parents before children."""
        stack = [node.id]
        while stack:
            for child in list(self.children.get(stack.pop(), {}).values()):
                yield child
                if child.kind == Kind.DIRECTORY:
                    stack.append(child.id)

    def validate(self) -> None:
        """Raise AssertionError if any derived index is not what the entries say."""
        nodes = [node for folder in self.children.values() for node in folder.values()]
        real = [node for node in nodes if node.kind != Kind.WHITEOUT]
        for parent, folder in self.children.items():
            assert folder, f"empty child table of {parent}"
            for name, node in folder.items():
                assert (node.parent, node.name) == (parent, name)
        assert self.by_id == {node.id: node for node in real} | {ROOT_ID: self.root}
        assert set(self.whiteouts) == {(n.parent, n.name) for n in nodes if n.kind == Kind.WHITEOUT}
        assert set(self.dirty) == {n.id for n in real if n.is_dirty and n.is_recorded}
        files = [n for n in real if n.is_recorded and n.kind != Kind.DIRECTORY]
        assert set(self.clean) == {n.id for n in files if not n.is_dirty}
        assert set(self.held) == {n.id for n in files if not n.is_dirty and n.data}
        assert set(self.movers) == {n.id for n in real if n.moving}
        assert set(self.opaque) == {n.id for n in real if n.kind == Kind.DIRECTORY and n.lower is None}
        assert self.dirty_bytes == sum(n.stored_bytes for n in real if n.is_dirty)
        assert self.held_bytes == sum(n.stored_bytes for n in real if not n.is_dirty)
        users: dict[bytes, set[int]] = {}
        for node in real:
            if node.base is not None:
                users.setdefault(node.base.key, set()).add(node.id)
        assert self.base_users == users
        lowers: dict[bytes, set[int]] = {}
        for node in real:
            if node.lower is not None:
                lowers.setdefault(node.lower, set()).add(node.id)
        assert self.lowers == lowers
        for node in real:
            above = self.by_id.get(node.parent, self.root)
            follows = above.lower is not None and node.lower == above.lower + node.name + b"/"
            assert node.lower in (None, self.key_of(node)) or node.moving or follows, (
                f"{node.name!r} shows {node.lower!r}"
            )
        for key, holder in self.remote_holders.items():
            remote = self.by_id[holder].remote
            assert remote is not None
            assert remote.key == key
        assert set(self.attempt_of.values()) <= set(self.attempts)
        assert self.doomed_below == Counter(prefix for key in self.doomed for prefix in _prefixes(key))
        for node in nodes:
            assert self.find(node_key(node.parent, node.name)) is node


def _prefixes(key: bytes) -> list[bytes]:
    """Every prefix of a key that ends in a slash; of a marker its own key too."""
    return [key[: index + 1] for index, byte in enumerate(key) if byte == ord("/")]
