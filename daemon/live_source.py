"""A live bucket as the source of a mount: its names as they are asked for, and the one store its bytes are in."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from .. import config
from ..cache.namespace import Namespace, NamespaceOptions
from ..errors import ObjectNotFound
from ..fuse_mount.live_view import LiveView
from ..tiers.stores import open_store
from ..tiers.understore import UnderStore
from ..tiers.version import ObjectVersion
from .sources import SourceName, name_of, store_options


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
