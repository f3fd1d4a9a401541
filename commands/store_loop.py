"""Under stores for commands that are otherwise plain code: an event loop in a thread of its own, and what runs on it.

The metadata side of snapshots is synchronous and computes; the stores are asynchronous and wait. A command holds both: it
works in the main thread and asks the stores through here. Ctrl-C cancels what is asked and ends the loop in order.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from ..config import Settings
from ..daemon.sources import store_options
from ..errors import ObjectNotFound, StoreDenied
from ..snapshots import ObjectName
from ..snapshots.object_stores import ObjectStores
from ..snapshots.task_group import plain_task_group
from ..tiers.stores import open_store
from ..tiers.understore import ObjectInfo, UnderStore

T = TypeVar("T")

LOOK_UPS_AT_ONCE: Final = 128


class StoreLoop:
    """A context manager: the loop runs while inside."""

    def __init__(self, settings: Settings) -> None:
        self._options = store_options(settings)
        self.loop = asyncio.new_event_loop()
        self.stores = ObjectStores(self._open)
        self._thread = threading.Thread(target=self._serve, name="stores", daemon=True)
        self._free = asyncio.Semaphore(LOOK_UPS_AT_ONCE)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self.stores.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the loop. Interrupted, it is cancelled, and has ended when this raises."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator."""

        async def following() -> list[T]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        while found := self.run(following()):
            yield found[0]

    def open(self, url: str) -> tuple[UnderStore, str]:
        """The store of a URL and the prefix in it, after proving that it can be listed. Raises the StoreError why not."""
        store, prefix = self.locate(url)
        self.run(store.check())
        return store, prefix

    def locate(self, url: str) -> tuple[UnderStore, str]:
        """The store of a URL and the prefix in it; asks nobody. Raises UsageError."""
        opened, prefix = open_store(url, self._options)
        return self.stores.keep(opened), prefix

    def look_up(self, names: Sequence[ObjectName]) -> list[ObjectInfo | str]:
        """What the stores have under each name, or why it cannot be used (a text); many are asked at once."""
        return self.run(self._look_up(names))

    async def _look_up(self, names: Sequence[ObjectName]) -> list[ObjectInfo | str]:
        found: list[ObjectInfo | str] = [""] * len(names)

        async def one(at: int, name: ObjectName) -> None:
            async with self._free:
                found[at] = await self._head(name)

        async with plain_task_group() as tasks:
            for at, name in enumerate(names):
                tasks.create_task(one(at, name))
        return found

    async def _head(self, name: ObjectName) -> ObjectInfo | str:
        store = self.stores.get(name.store)
        try:
            info = await store.head(name.key, version_id=name.version_id)
        except (ObjectNotFound, StoreDenied) as error:
            return error.message
        return info if info is not None else f"there is no object {name.key!r} in {name.store}"

    def _open(self, url: str) -> UnderStore:
        return open_store(url, self._options)[0]

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
