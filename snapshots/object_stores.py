"""The under stores that a version's objects lie in, opened by the name that each entry records.

A store's name has its endpoint in it (`s3://bucket@host:port`) but neither credentials nor a scheme. So a store is opened
with this process's own configuration, and used only if the result has the very same name: a version that was
recorded at one endpoint is never read from another, and no request is signed for a host that the user did not configure.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from ..errors import UsageError
from ..tiers.understore import UnderStore

OpenStore = Callable[[str], UnderStore]
"""Opens `s3://bucket`, `file:///dir` or another URL with the configuration in effect."""


class ObjectStores:
    """Opens each store once; closes them all. Belongs to one event loop."""

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self._stores: dict[str, UnderStore] = {}

    def get(self, name: str) -> UnderStore:
        """The store of that name. Raises UsageError when this process is configured for another endpoint."""
        store = self._stores.get(name)
        if store is None:
            url, _, endpoint = name.partition("@") if name.startswith("s3://") else (name, "", "")
            store = self._open_store(url)
            store = self.keep(store)
            if store.id != name:
                raise UsageError(
                    f"the version has objects in {name}, but {url} is {store.id} for this process",
                    remedy=f"set --endpoint-url to {endpoint or 'that of the store'}",
                )
        return store

    def keep(self, store: UnderStore) -> UnderStore:
        """An opened store is closed with the others from now on; the one of that name that is open already, if there is."""
        return self._stores.setdefault(store.id, store)

    async def close(self) -> None:
        while self._stores:
            await self._stores.popitem()[1].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
