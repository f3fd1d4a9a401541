"""A version that was found: its commit, and everything that can be read from it."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from ..errors import RefNotFound
from .commits import Commit, decode_commit
from .entries import Entry, entries_of
from .listing import FolderEntry, Statistics, list_folder, statistics
from .metastore import CommitId, MetaStore
from .pages import Page, PageId
from .reader import PageReader
from .roots import PageRef
from .selection import Selection, selected_batches


@dataclass(frozen=True)
class Snapshot:
    """One version of a dataset, immutable. `number` is its version number (0: it has none, a commit found by its id).

    `ref` is what it was found by. Reading methods raise PageCorrupt when a page is missing or damaged.
    """

    dataset: str
    ref: str
    number: int
    commit: Commit
    reader: PageReader

    @property
    def root(self) -> PageId:
        return self.commit.root

    @property
    def version_name(self) -> str:
        """The name that always means this version: `dataset@v7`, or by id when it has no number."""
        return f"{self.dataset}@v{self.number}" if self.number else f"{self.dataset}@{self.commit.short_id}"

    def pages(self) -> Iterator[tuple[PageRef, Page]]:
        """All pages in path order, fetched ahead."""
        return self.reader.pages(self.reader.refs(self.root))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All entries as batches of ENTRY_SCHEMA, in path order; some thousand entries each."""
        return self.reader.batches(self.root)

    def select(self, selection: Selection) -> Iterator[pa.RecordBatch]:
        """The entries that the selection takes, as batches."""
        return selected_batches(self.reader, self.root, selection)

    def find(self, path: str) -> Entry | None:
        """The entry at a path."""
        found = self.reader.find(self.root, path)
        return None if found is None else entries_of(found)[0]

    def ls(self, folder: str = "") -> Iterator[FolderEntry | Entry]:
        """What lies directly in a folder."""
        return list_folder(self.reader, self.root, folder)

    def stats(self, *, folder_depth: int = 1) -> Statistics:
        """Counts and bytes per label, per folder and per size."""
        return statistics(self.reader, self.root, folder_depth=folder_depth)


def find_snapshot(meta: MetaStore, reader: PageReader, dataset: str, ref: str, commit_id: CommitId) -> Snapshot:
    """The version of a commit. Raises RefNotFound when gc has taken it, PageCorrupt when its record is damaged."""
    data = meta.get_commits([commit_id]).get(commit_id)
    if data is None:
        raise RefNotFound(f"{dataset}@{ref} is not there any more: gc has collected it")
    versions = meta.versions(dataset)
    number = len(versions) - versions[::-1].index(commit_id) if commit_id in versions else 0
    return Snapshot(dataset, ref, number, decode_commit(commit_id, data), reader)
