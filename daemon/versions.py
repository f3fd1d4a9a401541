"""Versions of a dataset beside the one that a process is for, looked at through the same process and cache.

All versions of a dataset share one cache, and one process holds it. So when `pets@v7` is mounted and somebody asks
for `pets@v8` (a prefetch before the next job, a Python program), the process of the mount opens that version, too:
for the length of a `with`, and it stays open for the next one (at most MOST_OPEN, each with a lease of its own).
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from .. import config
from ..errors import UsageError
from ..tiers.understore import UnderStore
from ..tiers.version import ObjectVersion
from . import opening, sources
from .sources import Source

MOST_OPEN: Final = 8


@dataclass
class _Open:
    source: Source
    users: int = 0


class Versions:
    """`main` is the source that the process is for; it belongs to the caller, the others are closed by `close`."""

    def __init__(self, main: Source, settings: config.Settings, owner: str) -> None:
        self._main = main
        # Paths of other versions are those of the version: only the mount itself is laid out by label.
        self._settings = replace(settings, by_label=None)
        self._owner = owner
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def at(self, text: str | None) -> AsyncIterator[Source]:
        """The source of that name (None: the main one). Raises UsageError for one that has another cache, and what opening raises."""
        if text is None or text == self._main.name.text:
            yield self._main
            return
        async with self._lock:
            one = self._open.get(text)
            if one is None:
                one = await self._open_locked(text)
            self._open.move_to_end(text)
            one.users += 1
        try:
            yield one.source
        finally:
            one.users -= 1

    def store_of(self, version: ObjectVersion) -> UnderStore:
        """The under store that a version is in, for the cache. Raises UsageError if no open source has it."""
        for source in (self._main, *(one.source for one in self._open.values())):
            store = source.stores.get(version.store)
            if store is not None:
                return store
        raise UsageError(f"{version.store} is no store of {self._main.name.text}")

    async def close(self) -> None:
        """Close the other versions."""
        while self._open:
            await self._open.popitem()[1].source.close()

    async def _open_locked(self, text: str) -> _Open:
        if sources.name_of(text, self._settings).folder != self._main.name.folder:
            raise UsageError(f"this process holds the cache of {self._main.name.text}, not that of {text}")
        if len(self._open) >= MOST_OPEN:
            unused = next((name for name, one in self._open.items() if not one.users), None)
            if unused is None:
                raise UsageError(f"{MOST_OPEN} other versions are in use here", remedy="try again later")
            await self._open.pop(unused).source.close()
        source = await opening.open_source(text, self._settings, what=f"{text} through {self._owner}")
        one = self._open[text] = _Open(source)
        return one
