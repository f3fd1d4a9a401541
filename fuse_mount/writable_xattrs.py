"""Extended attributes on a writable mount: those that programs set, beside what Forebay tells (`user.forebay.*`)."""

import errno

from .writable_view import WritableView
from .xattrs import PREFIX, Xattrs


class WritableXattrs(Xattrs):
    def __init__(self, view: WritableView, told: Xattrs) -> None:
        super().__init__(view, told.facts)
        self._nodes = view

    def value(self, ino: int, name: bytes) -> bytes:
        """One attribute. Raises OSError(ENODATA) if there is none of that name."""
        if name.startswith(PREFIX):
            return super().value(ino, name)
        # Asked for every file by the kernel and by `ls -l` (security.*, POSIX ACLs): no more work than this.
        tree = self._nodes.tree_node(ino)
        found = tree.xattrs.get(name) if tree is not None and tree.xattrs else None
        if found is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return found

    def names(self, ino: int) -> list[bytes]:
        tree = self._nodes.tree_node(ino)
        return list(tree.xattrs) if tree is not None and tree.xattrs else []
