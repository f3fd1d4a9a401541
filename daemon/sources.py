"""SOURCE as users write it, turned into a tree to look at (`View`) and the stores that its bytes come from.

    s3://bucket[/prefix], file:///dir, any URL that fsspec knows    a live bucket
    dataset@ref                                                     a snapshot

This is the seam between the command line and the areas behind it: whatever is given as SOURCE to a mount, a prefetch or
a Python program comes through `open_source`, and a new kind of source is one more class here.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from .. import config
from ..cache.namespace import Namespace, NamespaceOptions
from ..errors import ObjectNotFound, UsageError
from ..fuse_mount.live_view import LiveView
from ..fuse_mount.view import View
from ..tiers.stores import StoreOptions, open_store
from ..tiers.understore import UnderStore
from ..tiers.version import ObjectVersion

_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*@[\w.^~-]+")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class SourceName:
    """What a source is called, found out without asking anybody. `text` is for people, `folder` names its cache folder."""

    text: str
    folder: str


class Source(Protocol):
    """An open source. Belongs to the event loop that opened it."""

    @property
    def name(self) -> SourceName: ...

    @property
    def view(self) -> View: ...

    @property
    def stores(self) -> Mapping[str, UnderStore]:
        """Every store that versions of this source may be in, by id."""
        ...

    async def version_of(self, path: str) -> ObjectVersion | None:
        """The content of the file at `path` now; None if there is none, or a folder."""
        ...

    def entries(self, folder: str) -> AsyncIterator[tuple[str, ObjectVersion]]:
        """(path, content) of every file below `folder` ("" for all). Raises ObjectNotFound if there is nothing."""
        ...

    def describe(self) -> dict[str, Any]:
        """What status and metrics show of it: numbers and texts, JSON-able."""
        ...

    async def close(self) -> None: ...


def name_of(text: str, settings: config.Settings) -> SourceName:
    """The name of a source; no I/O over the network. Raises UsageError if it can be none."""
    if is_dataset(text):
        dataset = text.partition("@")[0]
        # All versions of a dataset share one cache: that is what makes switching between them cheap.
        return SourceName(text, _folder_name(f"dataset-{dataset}", f"{settings.meta_url or ''}\0{dataset}"))
    if _PLAIN_NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} is neither a URL nor a version of a dataset",
            remedy=f"write {text}@latest for its newest version",
        )
    store, prefix = open_store(text, store_options(settings))
    canonical = text.rstrip("/") if not text.endswith("://") else text
    return SourceName(canonical, _folder_name(canonical.replace("://", "-"), f"{store.id}\0{prefix}"))


def is_dataset(text: str) -> bool:
    return _DATASET.fullmatch(text) is not None


async def open_source(text: str, settings: config.Settings, *, what: str) -> Source:
    """Open a source, and prove that it can be read: raises the StoreError (or SnapshotError) that says why not.

    `what` is what it is opened for ("the mount at /data"): people see it where a version is leased.
    """
    if is_dataset(text):
        from .snapshot_source import SnapshotSource  # Arrow takes a quarter of a second: only for those who need it

        return await SnapshotSource.open(name_of(text, settings), settings, what=what)
    if settings.by_label is not None:
        raise UsageError(
            f"{text} is no version of a dataset, and only those have labels", remedy="leave out --by-label"
        )
    return await LiveSource.open(text, settings)


class LiveSource:
    """A bucket, or a part of one, as it is now."""

    def __init__(self, name: SourceName, store: UnderStore, prefix: str, metadata_ttl_s: float) -> None:
        self._name = name
        self._store = store
        self._prefix = prefix
        self._namespace = Namespace(store, prefix, NamespaceOptions(metadata_ttl_s=metadata_ttl_s))
        self._view = LiveView(self._namespace)

    @property
    def name(self) -> SourceName:
        return self._name

    @property
    def view(self) -> LiveView:
        return self._view

    @property
    def namespace(self) -> Namespace:
        return self._namespace

    @property
    def store(self) -> UnderStore:
        return self._store

    @property
    def prefix(self) -> str:
        """Empty, or ending in a slash."""
        return self._prefix

    @classmethod
    async def open(cls, text: str, settings: config.Settings) -> "LiveSource":
        store, prefix = open_store(text, store_options(settings))
        try:
            await store.check()
            return cls(name_of(text, settings), store, prefix, settings.metadata_ttl)
        except BaseException:
            await store.close()
            raise

    @property
    def stores(self) -> Mapping[str, UnderStore]:
        return {self._store.id: self._store}

    async def version_of(self, path: str) -> ObjectVersion | None:
        info = await self._store.head(self._prefix + path)
        return self._store.version(info) if info is not None else None

    async def entries(self, folder: str) -> AsyncIterator[tuple[str, ObjectVersion]]:
        found = False
        async for item in self._listed(f"{self._prefix}{folder}/" if folder else self._prefix):
            found = True
            yield item
        if folder and not found:
            raise ObjectNotFound(f"there is nothing at {folder!r} in {self.name.text}")

    async def _listed(self, prefix: str) -> AsyncIterator[tuple[str, ObjectVersion]]:
        store, skip, token = self._store.id, len(self._prefix), None
        while True:
            page = await self._store.list_page(prefix, token=token)
            for key, size, etag in zip(page.keys, page.sizes, page.etags, strict=True):
                if not key.endswith("/"):
                    yield key[skip:], ObjectVersion(store, key, etag, size)
            token = page.next_token
            if token is None:
                return

    def describe(self) -> dict[str, Any]:
        stats = self._namespace.stats()
        plain = replace(stats, skipped=dict(stats.skipped))  # `asdict` cannot copy a Counter
        return {**asdict(plain), "inodes_held": self._view.inodes_held}

    async def close(self) -> None:
        await self._namespace.close()
        await self._store.close()


def store_options(settings: config.Settings) -> StoreOptions:
    """How the settings say that stores are reached."""
    return StoreOptions(
        endpoint_url=settings.endpoint_url,
        profile=settings.profile,
        anonymous=settings.anonymous,
        timeout_s=settings.io_timeout,
        max_connections=settings.max_connections,
    )


def _folder_name(readable: str, identity: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", readable).strip("-.")[:80]
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"{stem}-{digest}"
