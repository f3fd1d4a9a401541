"""Splitting a version into parts (train, val, test) so that an entry never changes sides.

The side of an entry is decided by a hash of the seed and its group alone: its path, its folder, or the value of a label
(`label.patient`), so that everything of one group is on one side. It does not depend on what else is in the
version, so a later version splits every entry that it shares with this one in the same way: no leakage.
"""

import contextlib
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError
from .builder import Built, VersionBuilder
from .filters import subject_texts
from .hashing import hash_fractions
from .metastore import MetaStore
from .names import check_ref_name
from .pages import Page, PageId
from .reader import PageReader
from .where import Subject, parse_subject


class Split:
    """Names and shares of the parts. Shares are fractions; what is missing to 1 is left out of all parts.

    `by`: `path`, `folder` or a label (`label.patient`); entries without that label are groups of their own, by path.
    Raises UsageError.
    """

    def __init__(self, shares: dict[str, float], *, by: str = "path", seed: int = 0) -> None:
        if not shares or any(share <= 0 for share in shares.values()):
            raise UsageError("a split needs parts with a share above 0 each")
        if sum(shares.values()) > 1 + 1e-9:
            raise UsageError(f"the shares add up to {sum(shares.values()):g}, which is more than 1")
        for name in shares:
            check_ref_name(name, "part")
        self.names = list(shares)
        self.by = by
        self.seed = seed
        self._ends = list(itertools.accumulate(shares.values()))
        self._subject: Subject = parse_subject(by)

    def sides(self, page: Page) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Per entry the index into `names`; len(names) for those that are in no part."""
        groups = pc.coalesce(subject_texts(self._subject, page), page.column("path"))
        fractions = hash_fractions(groups, self.seed)
        # Rounding must not leave out what shares that add up to 1 cover.
        ends = [1.0 if abs(end - 1) < 1e-9 else end for end in self._ends]
        return np.searchsorted(np.array(ends), fractions, side="right")


def build_split(meta: MetaStore, reader: PageReader, root: PageId, split: Split) -> dict[str, Built]:
    """Store one version per part, in one pass."""
    with contextlib.ExitStack() as stack:
        builders = [stack.enter_context(VersionBuilder(meta, reader)) for _ in split.names]
        for _, page in reader.pages(reader.refs(root)):
            sides = split.sides(page)
            batch = page.batch()
            for number, builder in enumerate(builders):
                builder.add(batch.filter(pa.array(sides == number)))
        return {name: builder.finish() for name, builder in zip(split.names, builders, strict=True)}
