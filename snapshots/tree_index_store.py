"""Where tree indexes live: one folder per (commit, layout) under the data folder, built when first asked for.

    <root>/<commit>-<layout>/         a finished index; appears by rename, never changes; whoever has it open holds a
                                      shared flock on the folder itself
    <root>/<commit>-<layout>.lock     flock: held while building
    <root>/<commit>-<layout>.part/    being built; what a killed build left is removed by the next one

An index is only a copy of what the snapshot says: it can be deleted at any time (`prune` does, oldest use first,
never one that is open), and a damaged one is built again.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ..errors import IndexDamaged
from .tree_index import HEADER_NAME, Layout, TreeIndex

if TYPE_CHECKING:  # building needs Arrow; opening must not load it into every mount
    import pyarrow as pa

log = logging.getLogger(__name__)

PRUNE_LIMIT_BYTES: Final = 32 << 30

Entries = Callable[[], Iterable["pa.RecordBatch"]]


def index_name(commit: str, layout: Layout) -> str:
    """The folder name; a label key can hold any character, so it goes in as a hash."""
    if layout.label_key is None:
        return f"{commit}-path"
    return f"{commit}-label-{hashlib.blake2b(layout.label_key.encode(), digest_size=8).hexdigest()}"


@dataclass
class OpenIndex:
    """An index and the shared lock that keeps it from being pruned."""

    index: TreeIndex
    _lock_fd: int

    def close(self) -> None:
        self.index.close()
        os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TreeIndexStore:
    """The indexes of one data folder. Blocking: call it from a thread or before the event loop runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def open(self, commit: str, layout: Layout) -> OpenIndex | None:
        """The index if it is there and whole, else None."""
        folder = self.root / index_name(commit, layout)
        try:
            lock_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_SH)
            index = TreeIndex.open(folder)  # fails if it was pruned just before the lock: then there is no header
            os.utime(folder / HEADER_NAME)
        except IndexDamaged as error:
            os.close(lock_fd)
            log.warning("%s; it will be built again", error)
            return None
        except BaseException:
            os.close(lock_fd)
            raise
        return OpenIndex(index, lock_fd)

    def ensure(
        self,
        commit: str,
        layout: Layout,
        entries: Entries,
        *,
        commit_time_ns: int,
        progress: Callable[[int], None] | None = None,
    ) -> OpenIndex:
        """The index, built now if it is not there or damaged. A second process that asks waits for the first one's."""
        found = self.open(commit, layout)
        if found is not None:
            return found
        folder = self.root / index_name(commit, layout)
        with self._building(folder):
            found = self.open(commit, layout)
            if found is None:
                self._build_locked(folder, commit, layout, entries, commit_time_ns, progress)
                found = self.open(commit, layout)
        if found is None:
            raise IndexDamaged(f"the tree index {folder} is damaged just after it was built", remedy="check the disk")
        return found

    def _build_locked(
        self,
        folder: Path,
        commit: str,
        layout: Layout,
        entries: Entries,
        commit_time_ns: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        from .tree_index_build import build_tree_index

        # A damaged index may still be mapped by a mount that opened it whole: its files live on until that one closes.
        part = folder.with_name(folder.name + ".part")
        for leftover in (part, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir()
        try:
            build_tree_index(
                part, entries(), commit=commit, commit_time_ns=commit_time_ns, layout=layout, progress=progress
            )
            part.rename(folder)
            self._sync_root()
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def prune(self, limit_bytes: int = PRUNE_LIMIT_BYTES) -> list[str]:
        """Remove the indexes that were used longest ago until the rest fits; returns the names removed."""
        sizes: dict[Path, int] = {}
        for folder in self.root.iterdir():
            if (folder / HEADER_NAME).is_file():
                sizes[folder] = sum(file.stat().st_size for file in folder.iterdir())
        removed: list[str] = []
        for folder in sorted(sizes, key=lambda f: (f / HEADER_NAME).stat().st_mtime_ns):
            if sum(sizes.values()) <= limit_bytes:
                break
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            except BlockingIOError:
                continue  # in use
            finally:
                os.close(descriptor)
            del sizes[folder]
            removed.append(folder.name)
        return removed

    @contextmanager
    def _building(self, folder: Path) -> Iterator[None]:
        """Hold the build lock of an index, waiting for whoever builds it."""
        descriptor = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sync_root(self) -> None:
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
