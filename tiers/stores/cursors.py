"""Pages of a listing that is produced by walking: the walk is kept between two pages.

A token is the last key of the page before it, so that a listing goes on even when its walk is no longer kept (too many
listings at once): it is then walked again up to the token.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

from ..understore import ListPage

# (name, size in bytes, etag, mtime in ns): a key, or a common prefix when the etag is None.
Row: TypeAlias = tuple[str, int, str | None, int]

MAX_KEPT_WALKS = 16


class ListingCursors:
    """The walks of unfinished listings, at most MAX_KEPT_WALKS; the least recently used is given up. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._walks: OrderedDict[tuple[str, str | None, str], Iterator[Row]] = OrderedDict()

    def page(
        self, prefix: str, delimiter: str | None, token: str | None, limit: int, walk: Callable[[], Iterator[Row]]
    ) -> ListPage:
        """The next `limit` rows after `token` of the ordered rows that `walk()` begins."""
        rows = None
        if token is not None:
            with self._lock:
                rows = self._walks.pop((prefix, delimiter, token), None)
        if rows is None:
            rows = walk()
            if token is not None:
                after = order(token)
                rows = (row for row in rows if order(row[0]) > after)
        batch = list(islice(rows, limit))
        next_token = batch[-1][0] if len(batch) == limit else None
        if next_token is not None:
            with self._lock:
                self._walks[(prefix, delimiter, next_token)] = rows
                if len(self._walks) > MAX_KEPT_WALKS:
                    self._walks.popitem(last=False)
        objects = [(key, size, etag, mtime_ns) for key, size, etag, mtime_ns in batch if etag is not None]
        return ListPage(
            keys=[row[0] for row in objects],
            sizes=[row[1] for row in objects],
            etags=[row[2] for row in objects],
            mtimes_ns=[row[3] for row in objects],
            prefixes=[row[0] for row in batch if row[2] is None],
            next_token=next_token,
        )


def order(key: str) -> bytes:
    """Sort key of keys: their UTF-8 bytes, as object stores order them."""
    return key.encode("utf-8", "surrogateescape")
