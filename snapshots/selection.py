"""Choosing entries of a version: by condition, by folder, by a reproducible sample; no data is moved or copied.

A sample is decided by a hash of seed and path, not by drawing: the same seed takes the same entries on every machine, and
of two versions it takes the same of what they have in common. `limit` takes the first entries in path order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError
from .builder import Built, VersionBuilder
from .filters import Filter
from .hashing import hash_fractions
from .metastore import MetaStore
from .pages import Page, PageId
from .reader import PageReader
from .roots import PageRef


@dataclass(frozen=True)
class Selection:
    """What to take; everything that is given has to hold. `sample` is a fraction in (0, 1]; `folder` without slashes at its ends."""

    where: str | None = None
    folder: str | None = None
    sample: float | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1:
            raise UsageError(f"a sample of {self.sample:g} is not above 0 % and at most 100 %")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a limit of {self.limit} takes nothing")


def selected_pages(reader: PageReader, root: PageId, selection: Selection) -> Iterator[tuple[PageRef, Page, pa.Array]]:
    """(row, page, mask of the entries to take) for every page that may have some, in order. Raises UsageError, PageCorrupt."""
    condition = Filter(selection.where) if selection.where else None
    low = f"{selection.folder}/" if selection.folder else None
    high = f"{selection.folder}0" if selection.folder else None
    refs = reader.refs(root, low, high)
    if condition is not None:
        refs = (ref for ref in refs if not condition.excludes(ref.zones))
    left = selection.limit
    for ref, page in reader.pages(refs):
        mask = condition.mask(page) if condition else pa.repeat(pa.scalar(True), page.row_count)
        if low is not None and (ref.first < low or ref.last >= (high or "")):
            mask = pc.and_(mask, pc.starts_with(page.column("path"), low))
        if selection.sample is not None and pc.any(mask).as_py():
            mask = pc.and_(mask, _sampled(page, selection.sample, selection.seed))
        if left is not None:
            taken = np.cumsum(np.asarray(mask))
            if int(taken[-1]) > left:
                mask = pc.and_(mask, pa.array(taken <= left))
            left -= min(int(taken[-1]), left)
        yield ref, page, mask
        if left == 0:
            return


def _sampled(page: Page, fraction: float, seed: int) -> pa.Array:
    return pa.array(hash_fractions(page.column("path"), seed) < fraction)


def selected_batches(reader: PageReader, root: PageId, selection: Selection) -> Iterator[pa.RecordBatch]:
    """The entries that the selection takes, in order."""
    for _, page, mask in selected_pages(reader, root, selection):
        if pc.any(mask).as_py():
            yield page.chosen(mask)


def build_selection(meta: MetaStore, reader: PageReader, root: PageId, selection: Selection) -> Built:
    """Store the version that has only the selected entries."""
    final = _last_ref(reader, root)
    with VersionBuilder(meta, reader) as builder:
        for ref, page, mask in selected_pages(reader, root, selection):
            if pc.all(mask).as_py() and builder.at_page_start and ref.id != final:
                builder.add_page(ref)
            elif pc.any(mask).as_py():
                builder.add(page.chosen(mask))
        return builder.finish()


def _last_ref(reader: PageReader, root: PageId) -> PageId | None:
    parts = reader.parts(root)
    return reader.part_refs(parts[-1])[-1].id if parts else None
