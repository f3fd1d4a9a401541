"""A version from the listing of a bucket: pages of keys to batches of entries, faults by number of the object.

Objects whose key ends with `/` are folder markers of other tools and are left out, counted. Keys that cannot be paths (`a//b`,
or bytes that are no UTF-8) are faults like bad lines of a manifest. Listings come in the store's order, which is that of
versions on S3; where it is not, the sort behind takes care of it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import numpy as np
import pyarrow as pa

from ..tiers.understore import ListPage
from .entries import bad_path_mask, path_fault
from .manifest import LINE_SCHEMA, LineFault, ParsedBlock

T = TypeVar("T")


class ListingParser:
    """Turns the pages of one listing, in order, into batches. `store` is the store's id; `prefix` is cut from the paths."""

    def __init__(self, store: str, prefix: str = "") -> None:
        self._store = store
        self._prefix = prefix
        self._seen = 0
        self.markers = 0

    def parse(self, page: ListPage) -> ParsedBlock:
        first = self._seen + 1
        self._seen += len(page.keys)
        faults: list[LineFault] = []
        rows = []
        for number, key in enumerate(page.keys, first):
            if key.endswith("/"):
                self.markers += 1
            elif not key.isascii() and not _is_text(key):
                faults.append(LineFault(number, f"the key {key!a} is no UTF-8", ascii(key)))
            elif not key.startswith(self._prefix):
                faults.append(LineFault(number, f"the key {key!r} does not begin with {self._prefix!r}", key))
            else:
                rows.append(number - first)
        keys = [page.keys[row] for row in rows]
        paths = pa.array([key[len(self._prefix) :] for key in keys], pa.string())
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array([first + row for row in rows], pa.int64()),
                paths,
                pa.repeat(pa.scalar(self._store), len(rows)),
                pa.array(keys, pa.string()),
                pa.array([page.etags[row] for row in rows], pa.string()),
                pa.array([page.version_ids[row] if page.version_ids else None for row in rows], pa.string()),
                pa.array([page.sizes[row] for row in rows], pa.int64()),
                pa.array([page.mtimes_ns[row] for row in rows], pa.int64()),
                pa.nulls(len(rows), pa.string()),
                pa.nulls(len(rows), pa.string()),
            ],
            schema=LINE_SCHEMA,
        )
        good = np.ones(len(rows), np.bool_)
        for row in np.flatnonzero(np.asarray(bad_path_mask(paths))).tolist():
            if fault := path_fault(paths[row].as_py()):
                good[row] = False
                faults.append(LineFault(first + rows[row], fault, keys[row]))
        return ParsedBlock(batch if good.all() else batch.filter(pa.array(good)), faults)


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def blocking(items: AsyncIterator[T], loop: asyncio.AbstractEventLoop) -> Iterator[T]:
    """The items of an asynchronous iterator that lives on `loop`, for a thread outside of it; one is fetched ahead."""

    async def following() -> tuple[T] | None:
        async for item in items:
            return (item,)
        return None

    ahead = asyncio.run_coroutine_threadsafe(following(), loop)
    try:
        while (found := ahead.result()) is not None:
            ahead = asyncio.run_coroutine_threadsafe(following(), loop)
            yield found[0]
    finally:
        ahead.cancel()
