"""Verify: does every object still have the version that the snapshot recorded?

Two ways to ask, and the cheaper one is taken folder by folder:

    HEAD      one request per object. Always for objects with a version id, because a listing shows only the newest.
    listing   1000 keys per request, where many entries of one folder of the bucket stand close together. One listing
              page costs about as much as ten HEADs; a listing that has to wade through more pages than that pays for (a
              bucket with far more in it than the version) is given up, and HEADs do the rest. What the listing finds
              missing or different is asked again by HEAD, so a report never rests on the listing alone.

Entries come in path order, a window at a time, so keys of one folder come in ascending order and each folder's
listing is read once, from where the last window left it.

A store that does not answer is no drift: StoreUnavailable ends the run.
"""

import asyncio
import enum
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from ..tiers.understore import ListPage, UnderStore
from ..tiers.version import ObjectVersion
from .entries import Entry, entries_of
from .object_stores import ObjectStores
from .task_group import plain_task_group

WINDOW_ENTRIES: Final = 16_384
HEADS_AT_ONCE: Final = 64
HEADS_PER_PAGE: Final = 10
LISTING_MIN_ENTRIES: Final = 30
OPEN_LISTINGS: Final = 256


class Problem(enum.StrEnum):
    """How an object differs from what was recorded."""

    MISSING = "missing"
    OVERWRITTEN = "overwritten"


@dataclass(frozen=True, slots=True)
class Drift:
    """One entry whose object is not what it was. `found_*` is what the store has under the key now (None: nothing)."""

    path: str
    version: ObjectVersion
    problem: Problem
    found_etag: str | None = None
    found_size: int | None = None


@dataclass(slots=True)
class VerifyReport:
    """Counts of a run; grows while it goes on. `total` is the number of entries of the version."""

    total: int
    checked: int = 0
    checked_bytes: int = 0
    heads: int = 0
    listings: int = 0
    drift: dict[Problem, int] = field(default_factory=lambda: dict.fromkeys(Problem, 0))

    @property
    def drift_count(self) -> int:
        return sum(self.drift.values())

    @property
    def drift_text(self) -> str:
        """For messages: `3 missing, 1 overwritten`."""
        return ", ".join(f"{count:,} {problem.value}" for problem, count in self.drift.items() if count)


class Verifier:
    """One run over the entries of a version: iterate over `drift()`, look at `report` meanwhile or afterwards."""

    def __init__(self, batches: Iterable[pa.RecordBatch], total: int, stores: ObjectStores) -> None:
        self.report = VerifyReport(total)
        self._windows = _windows(batches)
        self._stores = stores
        self._listings: OrderedDict[tuple[str, str], FolderListing] = OrderedDict()
        self._heads_free = asyncio.Semaphore(HEADS_AT_ONCE)

    async def drift(self, progress: Callable[[], None] | None = None) -> AsyncIterator[Drift]:
        """Every entry that has drifted, in path order; `progress` is called after each window. Raises what the stores raise."""
        while (window := await asyncio.to_thread(next, self._windows, None)) is not None:
            found = await self._check(window)
            for entry, drift in zip(window, found, strict=True):
                self.report.checked += 1
                self.report.checked_bytes += entry.version.size
                if drift is not None:
                    self.report.drift[drift.problem] += 1
                    yield drift
            if progress is not None:
                progress()

    async def _check(self, window: list[Entry]) -> list[Drift | None]:
        folders: dict[tuple[str, str], list[int]] = {}
        heads: list[int] = []
        for index, entry in enumerate(window):
            version = entry.version
            if version.version_id is not None:
                heads.append(index)
            else:
                folder = version.key.rpartition("/")
                folders.setdefault((version.store, folder[0] + folder[1]), []).append(index)
        result: list[Drift | None] = [None] * len(window)
        async with plain_task_group() as tasks:
            for index in heads:
                tasks.create_task(self._head(window, index, result))
            for place, members in folders.items():
                if len(members) < LISTING_MIN_ENTRIES and place not in self._listings:
                    for index in members:
                        tasks.create_task(self._head(window, index, result))
                else:
                    tasks.create_task(self._list(place, window, members, result))
        while len(self._listings) > OPEN_LISTINGS:
            self._listings.popitem(last=False)
        return result

    async def _head(self, window: list[Entry], index: int, result: list[Drift | None]) -> None:
        entry = window[index]
        async with self._heads_free:
            self.report.heads += 1
            info = await self._stores.get(entry.version.store).head(
                entry.version.key, version_id=entry.version.version_id
            )
        result[index] = _compare(entry, None if info is None else (info.etag, info.size))

    async def _list(
        self, place: tuple[str, str], window: list[Entry], members: list[int], result: list[Drift | None]
    ) -> None:
        store, folder = place
        listing = self._listings.get(place)
        if listing is None:
            listing = FolderListing(self._stores.get(store), folder, self.report)
            self._listings[place] = listing
        self._listings.move_to_end(place)
        rest = sorted(members, key=lambda index: _key_order(window[index].version.key))
        known = await listing.look_up([window[index].version.key for index in rest])
        async with plain_task_group() as tasks:
            for index, key_known in zip(rest, known, strict=True):
                if isinstance(key_known, NotListed) or _compare(window[index], key_known) is not None:
                    tasks.create_task(self._head(window, index, result))


class NotListed(enum.Enum):
    """The listing did not come to this key: it was given up, or is past it already."""

    NOT_LISTED = "not listed"


class FolderListing:
    """The keys right in one folder of a bucket, read in ascending order as they are asked for, within a budget of pages."""

    def __init__(self, store: UnderStore, folder: str, report: VerifyReport) -> None:
        self._store = store
        self._folder = folder
        self._report = report
        self._page: dict[str, tuple[str, int]] = {}
        self._page_after = b""  # the page holds the keys above this one...
        self._last: bytes | None = None  # ...up to this one
        self._token: str | None = None
        self._ended = False
        self._asked = 0
        self._pages = 0

    async def look_up(self, keys: list[str]) -> list[tuple[str, int] | NotListed | None]:
        """(etag, size in bytes) of each key, None if the store has no such key. Keys ascend."""
        self._asked += len(keys)
        found: list[tuple[str, int] | NotListed | None] = []
        for key in keys:
            while not self._ended and (self._last is None or self._last < _key_order(key)):
                if self._pages > 1 + self._asked // HEADS_PER_PAGE:
                    return found + [NotListed.NOT_LISTED] * (len(keys) - len(found))
                await self._next_page()
            passed = _key_order(key) <= self._page_after
            found.append(NotListed.NOT_LISTED if passed else self._page.get(key))
        return found

    async def _next_page(self) -> None:
        page: ListPage = await self._store.list_page(self._folder, delimiter="/", token=self._token)
        self._pages += 1
        self._report.listings += 1
        rows = zip(page.keys, page.etags, page.sizes, strict=True)
        self._page = {key: (etag, size) for key, etag, size in rows}
        # Common prefixes are part of the order, too: a page may hold nothing else.
        self._page_after = self._last or b""
        names = [_key_order(name) for name in (*page.keys[-1:], *page.prefixes[-1:])]
        self._last = max(names, default=self._last)
        self._token = page.next_token
        self._ended = page.next_token is None


def _compare(entry: Entry, found: tuple[str, int] | None) -> Drift | None:
    if found is None:
        return Drift(entry.path, entry.version, Problem.MISSING)
    etag, size = found
    if (etag, size) == (entry.version.etag, entry.version.size):
        return None
    return Drift(entry.path, entry.version, Problem.OVERWRITTEN, etag, size)


def _key_order(key: str) -> bytes:
    """Stores list in the order of UTF-8 bytes, which is not that of Python's strings beyond the basic plane."""
    return key.encode("utf-8", "surrogateescape")


def _windows(batches: Iterable[pa.RecordBatch]) -> Iterator[list[Entry]]:
    window: list[Entry] = []
    for batch in batches:
        window.extend(entries_of(batch))
        if len(window) >= WINDOW_ENTRIES:
            yield window
            window = []
    if window:
        yield window
