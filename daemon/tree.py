"""A `View` by paths instead of inodes, for whoever is not the kernel: `forebay info`, Python programs.

Every node that is looked up is counted by the view and given back here when the `async with` ends, so a program that
asks for a million files holds no more inodes than it has in hand.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from ..errors import ObjectNotFound
from ..fuse_mount.view import ROOT_INO, Absent, Kind, Node, View


class Tree:
    """Paths are relative to the root, without slashes at the ends; "" is the root."""

    def __init__(self, view: View) -> None:
        self._view = view

    @contextlib.asynccontextmanager
    async def node(self, path: str) -> AsyncIterator[Node]:
        """The node at a path, held for the time of the `with`. Raises ObjectNotFound, or StoreUnavailable rather than guess."""
        held: list[int] = []
        try:
            node = self._view.node(ROOT_INO)
            for name in filter(None, os.fsencode(path).split(b"/")):
                if node.kind is not Kind.DIRECTORY:
                    raise ObjectNotFound(f"there is nothing at {path!r}: part of it is a file")
                found = self._view.peek(node.ino, name)
                if found is None:
                    found = await self._view.lookup(node.ino, name)
                if isinstance(found, Absent):
                    raise ObjectNotFound(f"there is nothing at {path!r}")
                held.append(found.ino)
                node = found
            yield node
        finally:
            for ino in held:
                self._view.forget(ino, 1)

    async def children(self, path: str) -> Iterator[tuple[str, Node]]:
        """(name, node) of everything in a folder; the nodes are not held, so take no content from them."""
        async with self.node(path) as node:
            if node.kind is not Kind.DIRECTORY:
                raise ObjectNotFound(f"{path!r} is a file, not a folder")
            directory = await self._view.open_directory(node.ino)
        return ((os.fsdecode(entry.name), entry.node) for entry in directory.read(0, plus=False))
