"""How a node of the write side looks to `stat`: with the owner, mode and times that it has, beside what the listing shows."""

from ..cache.write.nodes import Kind as NodeKind
from .attributes import BLOCK_BYTES, Appearance
from .options import MountOptions
from .view import Node
from .writable_view import WritableView

_SECTOR_BYTES = 512
_NS = 1_000_000_000
_U64 = 0xFFFFFFFFFFFFFFFF


class WritableAppearance(Appearance):
    def __init__(self, options: MountOptions, view: WritableView) -> None:
        super().__init__(options)
        self._view = view

    def mode(self, node: Node) -> int:
        tree = self._view.tree_node(node.ino)
        return self.modes[int(node.kind)] if tree is None or not tree.parent else tree.st_mode

    def owner(self, node: Node) -> tuple[int, int]:
        tree = self._view.tree_node(node.ino)
        return (self.uid, self.gid) if tree is None or not tree.parent else (tree.uid, tree.gid)

    def _fields(self, node: Node) -> tuple[int, ...]:
        tree = self._view.tree_node(node.ino)
        if tree is None or not tree.parent:  # the top has the attributes of the mount
            return super()._fields(node)
        seconds, nanoseconds = divmod(node.mtime_ns, _NS)
        changed, changed_ns = divmod(max(tree.ctime_ns, node.mtime_ns), _NS)
        links = 2 if tree.kind == NodeKind.DIRECTORY else 1
        return (
            node.ino, node.size, -(-node.size // _SECTOR_BYTES), seconds & _U64, seconds & _U64, changed & _U64,
            nanoseconds, nanoseconds, changed_ns, tree.st_mode, links, tree.uid, tree.gid, 0, BLOCK_BYTES, 0,
        )  # fmt: skip
