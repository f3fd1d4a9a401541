"""Reading versions: from a root page to page rows, pages and batches, a bounded number ahead.

Reading is a pipeline of two: a thread fetches, decompresses and proves the next pages (all three outside of the
interpreter's lock) while the caller works on the present one. At most AHEAD fetches of PAGES_PER_FETCH pages are held.
"""

import bisect
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from .metastore import MetaStore
from .pages import LEAF, PART, ROOT, Page, PageId, missing_page
from .roots import PageRef, decode_refs

PAGES_PER_FETCH = 16
AHEAD = 3
_INDEX_PAGES_KEPT = 64
# Single entries are looked up in paths that lie close together (the folders of an edit): mostly the same few pages.
_FOUND_PAGES_KEPT = 4


class PageReader:
    """Reads pages of one store. Immutable things are read once: index pages are kept, a bounded number of them."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._index: OrderedDict[PageId, list[PageRef]] = OrderedDict()
        self._found: OrderedDict[PageId, Page] = OrderedDict()

    def parts(self, root: PageId) -> list[PageRef]:
        """The parts of a version, in order. Raises PageCorrupt."""
        return self._index_page(root, ROOT)

    def part_refs(self, part: PageRef) -> list[PageRef]:
        """The pages of a part, in order. Raises PageCorrupt."""
        return self._index_page(part.id, PART)

    def refs(self, root: PageId, low: str | None = None, high: str | None = None) -> Iterator[PageRef]:
        """The pages of a version, in order; only those that may hold paths in [low, high) when given."""
        for part in self.parts(root):
            if (low is not None and part.last < low) or (high is not None and part.first >= high):
                continue
            for ref in self.part_refs(part):
                if (low is None or ref.last >= low) and (high is None or ref.first < high):
                    yield ref

    def page(self, ref: PageRef) -> Page:
        """One page. Raises PageCorrupt."""
        return self._fetch([ref])[0][1]

    def pages(self, refs: Iterable[PageRef]) -> Iterator[tuple[PageRef, Page]]:
        """The pages of the rows, in order, fetched ahead. Raises PageCorrupt."""
        rows = iter(refs)
        waiting: deque[Future[list[tuple[PageRef, Page]]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="forebay-pages") as pool:
            try:
                while True:
                    while len(waiting) < AHEAD and (some := list(itertools.islice(rows, PAGES_PER_FETCH))):
                        waiting.append(pool.submit(self._fetch, some))
                    if not waiting:
                        return
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def batches(self, root: PageId) -> Iterator[pa.RecordBatch]:
        """All entries of a version as batches of ENTRY_SCHEMA, in order. Raises PageCorrupt."""
        return (page.batch() for _, page in self.pages(self.refs(root)))

    def find(self, root: PageId, path: str) -> pa.RecordBatch | None:
        """The entry at `path` as a batch of one row, None when there is none. Raises PageCorrupt."""
        for ref in self.refs(root, path, path + "\0"):
            page = self._page_kept(ref)
            row = find_row(page.column("path"), path)
            if row is not None:
                return page.batch().slice(row, 1)
        return None

    def _page_kept(self, ref: PageRef) -> Page:
        page = self._found.get(ref.id)
        if page is None:
            page = self._found[ref.id] = self.page(ref)
            while len(self._found) > _FOUND_PAGES_KEPT:
                self._found.popitem(last=False)
        return page

    def _index_page(self, name: PageId, kind: int) -> list[PageRef]:
        rows = self._index.get(name)
        if rows is None:
            sealed = self._meta.get_pages([name]).get(name)
            if sealed is None:
                raise missing_page(name, kind)
            rows = decode_refs(name, sealed, kind)
            self._index[name] = rows
            while len(self._index) > _INDEX_PAGES_KEPT:
                self._index.popitem(last=False)
        return rows

    def _fetch(self, refs: list[PageRef]) -> list[tuple[PageRef, Page]]:
        sealed = self._meta.get_pages([ref.id for ref in refs])
        for ref in refs:
            if ref.id not in sealed:
                raise missing_page(ref.id, LEAF)
        return [(ref, Page.open(ref.id, sealed[ref.id])) for ref in refs]


def row_at_or_after(paths: pa.Array, path: str, start: int = 0) -> int:
    """The first row from `start` on whose path is not below `path` in order; the number of rows when there is none."""
    return bisect.bisect_left(range(len(paths)), path, lo=start, key=lambda row: paths[row].as_py())


def find_row(paths: pa.Array, path: str) -> int | None:
    row = row_at_or_after(paths, path)
    return row if row < len(paths) and paths[row].as_py() == path else None
