"""A snapshot as the source of a mount: its tree, the stores its objects lie in, and the lease that gc respects.

Opening it goes in this order, so that nothing can vanish in between: resolve the name, take the lease (which makes sure
that every page is there and stays), open the tree index (built now if this machine has not seen the version), open the
stores. From then on the metadata store is needed only to renew the lease: an outage of it does not touch the mount.

The view is by path, or `class/name` with `by-label`; `entries` follows it, because paths on the command line are
those of the mount.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import config
from ..errors import ObjectNotFound, UsageError
from ..fuse_mount.snapshot_view import SnapshotName, SnapshotView
from ..fuse_mount.view import View
from ..snapshots import Commit, Hold, Repository, Snapshot, open_repository
from ..snapshots.archive_record import archive_of
from ..snapshots.object_stores import ObjectStores
from ..snapshots.tree_index import Missing, TreeIndex
from ..snapshots.tree_index_names import UNLABELED
from ..tiers.stores import open_store
from ..tiers.understore import UnderStore
from ..tiers.version import ObjectVersion
from .sources import SourceName, store_options
from .tree_build import TreeRequest, open_tree

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE: Final = 1000


class SnapshotSource:
    """See the module. Made by `open`; belongs to the event loop that opened it."""

    def __init__(
        self,
        name: SourceName,
        snapshot: Snapshot,
        archive_url: str | None,
        index: TreeIndex,
        stores: Mapping[str, UnderStore],
    ) -> None:
        self._name = name
        self._view = SnapshotView(index, SnapshotName(snapshot.dataset, snapshot.ref, snapshot.commit.id.hex()))
        self._stores = stores
        self._snapshot = snapshot
        self._archive_url = archive_url
        self._index = index
        self._closing = contextlib.AsyncExitStack()

    @property
    def name(self) -> SourceName:
        return self._name

    @property
    def view(self) -> View:
        return self._view

    @property
    def stores(self) -> Mapping[str, UnderStore]:
        return self._stores

    @classmethod
    async def open(cls, name: SourceName, settings: config.Settings, *, what: str) -> "SnapshotSource":
        """Open the version that `name.text` names. `what` tells people who read the lease of the use ("mount at /data").

        Raises SnapshotError, UsageError, or the StoreError of a store that cannot be read.
        """
        async with contextlib.AsyncExitStack() as opening:
            repository = await asyncio.to_thread(open_repository, settings.meta_url)
            opening.push_async_callback(asyncio.to_thread, repository.close)
            held = await asyncio.to_thread(_hold, repository, name.text, what)
            opening.push_async_callback(asyncio.to_thread, held.hold.release)
            request = TreeRequest(
                meta_url=settings.meta_url,
                trees=str(tree_folder(settings)),
                commit=held.contents.id.hex(),
                root=held.contents.root.hex(),
                commit_time_ns=held.snapshot.commit.time_ms * 1_000_000,
                label_key=settings.by_label,
            )
            tree = await open_tree(request, _log_progress(name.text, held.contents.entry_count))
            opening.callback(tree.close)
            if settings.by_label is not None:
                _demand_label(tree.index, settings.by_label, name.text)
            stores = ObjectStores(_opener(settings))
            opening.push_async_callback(stores.close)
            by_name = {origin.store: stores.get(origin.store) for origin in tree.index.header.origins}
            for store in by_name.values():
                await store.check()
            source = cls(name, held.snapshot, held.archive_url, tree.index, by_name)
            source._closing = opening.pop_all()
            return source

    async def version_of(self, path: str) -> ObjectVersion | None:
        """The content of the file at a path of the mount; None if it is no file."""
        node = self._find(path)
        return None if node is None or node < self._index.folder_count else self._index.object_version(node)

    async def entries(self, folder: str) -> AsyncIterator[tuple[str, ObjectVersion]]:
        """(path in the mount, content) of every file in a folder, at any depth. Raises ObjectNotFound if there is none."""
        top = self._find(folder)
        if top is None:
            raise ObjectNotFound(f"there is nothing at {folder!r} in {self.name.text}")
        for count, node in enumerate(self._files_below(top)):
            if count % ENTRIES_AT_ONCE == ENTRIES_AT_ONCE - 1:
                await asyncio.sleep(0)
            yield self._index.path(node).decode("utf-8", "surrogateescape"), self._index.object_version(node)

    def _find(self, path: str) -> int | None:
        found = self._index.find(path.strip("/").encode("utf-8", "surrogateescape"))
        return None if found is Missing.MISSING else found

    def _files_below(self, top: int) -> Iterator[int]:
        index = self._index
        if top == 0:
            yield from index.files()
            return
        waiting = [top]
        while waiting:
            node = waiting.pop()
            if node >= index.folder_count:
                yield node
                continue
            places = index.child_range(node)
            for start in range(places.start, places.stop, ENTRIES_AT_ONCE):
                children = index.child_nodes(start, min(start + ENTRIES_AT_ONCE, places.stop))
                waiting += [child for child in children if child < index.folder_count]
                yield from (child for child in children if child >= index.folder_count)

    def describe(self) -> dict[str, Any]:
        """What status and metrics show of it."""
        snapshot = self._snapshot
        return {
            "kind": "snapshot",
            "dataset": snapshot.dataset,
            "ref": snapshot.ref,
            "version": snapshot.version_name,
            "archive": self._archive_url,
            **self._index.describe(),
            "commit": snapshot.commit.id.hex(),
        }

    async def close(self) -> None:
        """Close the stores and the index, and let go of the lease."""
        await self._closing.aclose()


def _demand_label(index: TreeIndex, key: str, text: str) -> None:
    """Refuse a layout by a label that no file has: a mount of one folder `_unlabeled` is never what was wanted."""
    top = index.child_range(0)
    if len(top) != 1 or index.name(index.child_nodes(top.start, top.stop)[0]) != UNLABELED.encode():
        return
    some_file = next(iter(index.files()))
    labels = json.loads(index.labels_json(some_file) or b"{}")
    known = ", ".join(sorted(labels)) if isinstance(labels, dict) and labels else "none"
    raise UsageError(
        f"--by-label: no file of {text} has the label {key!r}",
        remedy=f"choose one that `forebay snapshot stats {text}` shows (those of the first file: {known})",
    )


@dataclass(frozen=True)
class _Held:
    """A version with its lease; `contents` is the commit whose entries are read: that of its archive, if it has one."""

    snapshot: Snapshot
    hold: Hold
    contents: Commit
    archive_url: str | None


def _hold(repository: Repository, text: str, what: str) -> _Held:
    snapshot = repository.resolve(text)
    hold = repository.hold(snapshot, purpose="mount", what=what)
    try:
        archive = archive_of(repository, snapshot)
    except BaseException:
        hold.release()
        raise
    if archive is None:
        return _Held(snapshot, hold, snapshot.commit, None)
    log.info("%s is read from its archive in %s", text, archive.url)
    return _Held(snapshot, hold, archive.commit, archive.url)


def tree_folder(settings: config.Settings) -> Path:
    """Where the tree indexes of this machine are: they belong to no source, so beside all caches."""
    return (settings.cache_dir or (config.default_cache_dir(),))[0] / "trees"


def _opener(settings: config.Settings) -> Callable[[str], UnderStore]:
    options = store_options(settings)

    def opened(url: str) -> UnderStore:
        return open_store(url, options)[0]

    return opened


def _log_progress(text: str, total: int) -> Callable[[int], None]:
    shown = 0

    def report(done: int) -> None:
        nonlocal shown
        if done - shown >= 1_000_000:
            shown = done
            log.info("building the tree of %s: %d of %d entries", text, done, total)

    return report
