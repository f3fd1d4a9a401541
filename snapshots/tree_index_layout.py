"""Where each entry goes in the tree: by its path, or into a folder for the value of one of its labels.

A placement sees the entries in path order, a batch at a time, and numbers folders as they appear; what it remembers
between batches is the open chain of folders (by path) or the label values (by label), never the entries.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from ..errors import SnapshotError
from .tree_index_names import folder_of_label, label_value

LABEL_FOLDER_LIMIT: Final = 1_000_000
LABEL_MEMO_LIMIT: Final = 1 << 16


class FolderTable:
    """Numbers folders as they appear; the root is 0 and its own parent."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[bytes] = []
        self.parents: list[int] = []
        self.add(0, b"")

    def add(self, parent: int, name: bytes) -> int:
        self.names.append(name)
        self.parents.append(parent)
        self.count += 1
        return self.count - 1

    def take(self) -> tuple[list[bytes], list[int]]:
        """What was added since the last call."""
        taken = self.names, self.parents
        self.names, self.parents = [], []
        return taken


class Placement(Protocol):
    """Gives each entry its folder and its name."""

    def place(self, paths: Sequence[bytes], labels: pa.Array) -> tuple[list[int], list[bytes]]:
        """The folder's number and the name of each entry."""
        ...


class PathPlacement:
    """The tree of the paths. Sorted paths enter each folder once, so the open chain of folders is all there is to remember."""

    def __init__(self, folders: FolderTable) -> None:
        self._folders = folders
        self._head = b""
        self._chain: list[tuple[bytes, int]] = []
        self._folder = 0

    def place(self, paths: Sequence[bytes], labels: pa.Array) -> tuple[list[int], list[bytes]]:
        parents: list[int] = []
        names: list[bytes] = []
        for path in paths:
            head, _, name = path.rpartition(b"/")
            if head != self._head:
                self._enter(head)
            parents.append(self._folder)
            names.append(name)
        return parents, names

    def _enter(self, head: bytes) -> None:
        parts = head.split(b"/") if head else []
        shared = 0
        for part, (open_part, _) in zip(parts, self._chain, strict=False):
            if part != open_part:
                break
            shared += 1
        del self._chain[shared:]
        folder = self._chain[-1][1] if self._chain else 0
        for part in parts[shared:]:
            folder = self._folders.add(folder, part)
            self._chain.append((part, folder))
        self._head = head
        self._folder = folder


class LabelPlacement:
    """`class/name`: one folder for each value of a label, in it the last component of the path."""

    def __init__(self, folders: FolderTable, key: str) -> None:
        self._folders = folders
        self._key = key
        self._folder_of_name: dict[bytes, int] = {}
        self._folder_of_labels: dict[bytes | None, int] = {}

    def place(self, paths: Sequence[bytes], labels: pa.Array) -> tuple[list[int], list[bytes]]:
        encoded = labels.dictionary_encode(null_encoding="encode")
        numbers = [self._folder(text) for text in encoded.dictionary.cast(pa.binary()).to_pylist()]
        parents = np.asarray(numbers, np.int64)[np.asarray(encoded.indices)].tolist()
        return parents, [path.rpartition(b"/")[2] for path in paths]

    def _folder(self, labels: bytes | None) -> int:
        known = self._folder_of_labels.get(labels)
        if known is not None:
            return known
        name = folder_of_label(label_value(msgspec.json.decode(labels), self._key) if labels else None)
        folder = self._folder_of_name.get(name)
        if folder is None:
            if len(self._folder_of_name) == LABEL_FOLDER_LIMIT:
                raise SnapshotError(
                    f"the label {self._key!r} has more than {LABEL_FOLDER_LIMIT:,} values",
                    remedy="choose a label that names classes, not single entries",
                )
            folder = self._folder_of_name[name] = self._folders.add(0, name)
        if len(self._folder_of_labels) >= LABEL_MEMO_LIMIT:
            self._folder_of_labels.clear()
        self._folder_of_labels[labels] = folder
        return folder
