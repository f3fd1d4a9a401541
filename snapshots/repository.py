"""Datasets and their versions: every operation, under the names of the commands.

A `Repository` is a metadata store and what can be done with it. Operations that make a version follow one pattern: take
a write lease on what is built upon, store pages, then publish by compare-and-swap on the branch. Whoever loses
that race gets RefMoved, with nothing changed but unreachable pages; gc never takes what a running operation relies on.

All methods are synchronous and may take long; on an event loop, call them through `asyncio.to_thread`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from ..tiers.understore import ListPage
from .builder import Built, VersionBuilder, empty_root
from .catalog import Catalog
from .diff import diff_roots
from .edits import EditCounts, apply_edits, puts, removals, sorted_edits
from .exporting import manifest_lines
from .gc import DEFAULT_GRACE_S, Collector
from .history import History
from .holds import DEFAULT_TTL_S, Hold
from .importing import ImportProgress, ManifestImport, ManifestOptions, entries_of_listing
from .merge import Conflicts, MergeConflict, OnConflict, merge_edits
from .meta_url import open_meta
from .metastore import LeaseRecord
from .names import MAIN, not_found
from .object_listing import ListingParser
from .pages import PageId
from .relabel import LabelChange
from .selection import Selection, build_selection, selected_batches
from .snapshot import Snapshot
from .split import Split, build_split
from .writing import NO_NOTE, Made, Note, Writing

STRICT = ManifestOptions()
EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did; `progress` has the counts of lines and rejects."""

    made: Made
    progress: ImportProgress


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit did."""

    made: Made
    counts: EditCounts


class Repository(Catalog):
    """Everything that can be done with one metadata store. A context manager; leaving it closes the store."""

    # --- Making versions.

    def import_manifest(
        self,
        dataset: str,
        source: str | Path | BinaryIO,
        *,
        branch: str = MAIN,
        note: Note = NO_NOTE,
        options: ManifestOptions = STRICT,
    ) -> Imported:
        """A version with exactly the entries of the manifest, on a branch. Raises ManifestError, RefMoved."""
        reading = ManifestImport(source, options)

        def build(entries: Iterator[pa.RecordBatch]) -> Built:
            with VersionBuilder(self.meta, self.reader) as builder:
                for batch in entries:
                    builder.add(batch)
                return builder.finish()

        with self._writing(dataset, branch, "import") as writing:
            made = writing.publish(reading.run(build), note)
        return Imported(made, reading.progress)

    def create(
        self,
        dataset: str,
        batches: Iterable[pa.RecordBatch],
        *,
        branch: str = MAIN,
        note: Note = NO_NOTE,
    ) -> Made:
        """A version with exactly these entries (ENTRY_SCHEMA, strictly sorted by path). Raises ManifestError, RefMoved."""
        with self._writing(dataset, branch, "create") as writing:
            with VersionBuilder(self.meta, self.reader) as builder:
                for batch in batches:
                    builder.add(batch)
                built = builder.finish()
            return writing.publish(built, note)

    def create_from_listing(
        self,
        dataset: str,
        store: str,
        pages: Iterable[ListPage],
        *,
        prefix: str = "",
        branch: str = MAIN,
        note: Note = NO_NOTE,
        options: ManifestOptions = STRICT,
    ) -> Imported:
        """A version with the objects of a listing; `store` is the store's id, `prefix` is cut from the keys to give paths.

        An asynchronous listing goes through `blocking`. Raises ManifestError, RefMoved.
        """
        progress = ImportProgress()
        parser = ListingParser(store, prefix)
        name = f"listing of {store}/{prefix}"
        with contextlib.closing(entries_of_listing(pages, parser, name, options, progress)) as batches:
            return Imported(self.create(dataset, batches, branch=branch, note=note), progress)

    def edit(
        self,
        dataset: str,
        edits: Iterable[pa.RecordBatch],
        *,
        branch: str = MAIN,
        note: Note = NO_NOTE,
    ) -> Edited:
        """A version from the branch's head and edits (EDIT_SCHEMA, sorted by path). Raises ManifestError, RefMoved."""
        with self._writing(dataset, branch, "edit") as writing:
            built, counts = apply_edits(self.meta, self.reader, writing.root(), edits)
            return Edited(writing.publish(built, note), counts)

    def add(
        self,
        dataset: str,
        source: str | Path | BinaryIO,
        *,
        branch: str = MAIN,
        note: Note = NO_NOTE,
        options: ManifestOptions = STRICT,
    ) -> tuple[Edited, ImportProgress]:
        """Put the entries of a manifest into the branch, replacing those of the same paths."""
        reading = ManifestImport(source, options)
        with self._writing(dataset, branch, "add") as writing:
            root = writing.root()
            built, counts = reading.run(
                lambda entries: apply_edits(self.meta, self.reader, root, (puts(batch) for batch in entries))
            )
            return Edited(writing.publish(built, note), counts), reading.progress

    def remove(
        self,
        dataset: str,
        *,
        paths: Iterable[str] = (),
        selection: Selection | None = None,
        branch: str = MAIN,
        note: Note = NO_NOTE,
    ) -> Edited:
        """Take entries out of the branch: those at `paths` (a path with `/` at its end is a whole folder), or all selected ones.

        Paths that are not there are counted (`counts.absent`), not refused.
        """
        with self._writing(dataset, branch, "remove") as writing:
            root = writing.root()
            edits: Iterator[pa.RecordBatch]
            if selection is not None:
                edits = (removals(b.column("path")) for b in selected_batches(self.reader, root, selection))
            else:
                edits = sorted_edits(list(self._removals(root, set(paths))))
            built, counts = apply_edits(self.meta, self.reader, root, edits)
            return Edited(writing.publish(built, note), counts)

    def _removals(self, root: PageId, paths: set[str]) -> Iterator[pa.RecordBatch]:
        folders = sorted(path.rstrip("/") for path in paths if path.endswith("/"))
        yield removals(pa.array(sorted(path for path in paths if not path.endswith("/") and not _below(path, folders))))
        for number, folder in enumerate(folders):
            if _below(folder, folders[:number]):
                continue
            found = False
            for batch in selected_batches(self.reader, root, Selection(folder=folder)):
                found = True
                yield removals(batch.column("path"))
            if not found:
                yield removals(pa.array([f"{folder}/"]))

    def label(
        self,
        dataset: str,
        change: LabelChange,
        selection: Selection,
        *,
        branch: str = MAIN,
        note: Note = NO_NOTE,
    ) -> Edited:
        """Change labels of the selected entries of the branch."""
        with self._writing(dataset, branch, "label") as writing:
            root = writing.root()
            batches = change.apply_all(selected_batches(self.reader, root, selection))
            built, counts = apply_edits(self.meta, self.reader, root, (puts(batch) for batch in batches))
            return Edited(writing.publish(built, note), counts)

    def select(
        self,
        text: str,
        selection: Selection,
        *,
        branch: str = MAIN,
        note: Note = NO_NOTE,
    ) -> Made:
        """A version with the selected entries of another, on a branch of the same dataset (made when it is not there)."""
        source = self.resolve(text)
        with self._writing(source.dataset, branch, "select", source) as writing:
            return writing.publish(build_selection(self.meta, self.reader, source.root, selection), note)

    def split(
        self,
        text: str,
        split: Split,
        *,
        prefix: str = "",
        note: Note = NO_NOTE,
    ) -> dict[str, Made]:
        """One version per part, each on the branch `prefix` + name of the part."""
        source = self.resolve(text)
        with Hold(self.meta, source.dataset, source.commit.id, purpose="write", what="split") as hold:
            hold.secure_commit(self.reader, source.commit)
            built = build_split(self.meta, self.reader, source.root, split)
            made = {}
            for name, version in built.items():
                with self._writing(source.dataset, prefix + name, "split", source) as writing:
                    made[name] = writing.publish(version, note)
            return made

    def rollback(self, text: str, *, branch: str = MAIN, note: Note = NO_NOTE) -> Made:
        """A new version of the branch with the content of an older one; history is kept."""
        source = self.resolve(text)
        with self._writing(source.dataset, branch, "rollback", source) as writing:
            commit = source.commit
            return writing.publish(Built(commit.root, commit.entry_count, commit.size_bytes, 0, 0), note, merged=False)

    def merge(
        self,
        text: str,
        *,
        branch: str = MAIN,
        on_conflict: OnConflict = "fail",
        note: Note = NO_NOTE,
    ) -> tuple[Made, Conflicts]:
        """Bring what `text` changed since the common ancestor into the branch. Raises MergeConflict, RefMoved."""
        source = self.resolve(text)
        with self._writing(source.dataset, branch, "merge", source) as writing:
            if writing.head is None:
                raise not_found(f"there is no branch {branch!r}", branch, self.dataset(source.dataset).branches)
            base = History(self.meta).merge_base(writing.head.id, source.commit.id)
            base_root = base.root if base else empty_root(self.meta)
            conflicts = Conflicts()
            edits = merge_edits(self.reader, base_root, writing.head.root, source.root, on_conflict, conflicts)
            built, _ = apply_edits(self.meta, self.reader, writing.head.root, edits)
            if conflicts.count and on_conflict == "fail":
                raise MergeConflict(conflicts)
            return writing.publish(built, note), conflicts

    def _writing(self, dataset: str, branch: str, operation: str, source: Snapshot | None = None) -> Writing:
        return Writing(self.meta, self.reader, self.dataset(dataset), branch, operation, source)

    # --- Reading.

    def diff(self, old: str, new: str) -> Iterator[pa.RecordBatch]:
        """Batches of DIFF_SCHEMA in path order."""
        return diff_roots(self.reader, self.resolve(old).root, self.resolve(new).root)

    def export(self, text: str, selection: Selection = EVERYTHING) -> Iterator[bytes]:
        """The lines of a manifest of the version."""
        for batch in self.resolve(text).select(selection):
            yield from manifest_lines(batch)

    # --- Holding and collecting.

    def hold(self, snapshot: Snapshot, *, purpose: str, what: str, ttl_s: float = DEFAULT_TTL_S) -> Hold:
        """A lease on a version, renewed until released: gc keeps all of it, and names the lease. Raises RefNotFound, PageCorrupt."""
        hold = Hold(self.meta, snapshot.dataset, snapshot.commit.id, purpose=purpose, what=what, ttl_s=ttl_s)
        try:
            hold.secure_commit(self.reader, snapshot.commit)
        except BaseException:
            hold.release()
            raise
        return hold

    def leases(self) -> list[LeaseRecord]:
        """Live leases, oldest first."""
        return self.meta.leases()

    def collector(self, *, grace_s: float = DEFAULT_GRACE_S) -> Collector:
        """gc: `plan()` (dry run), `mark()`, `sweep()`."""
        return Collector(self.meta, grace_s=grace_s)


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(path.startswith(folder + "/") for folder in folders)


def open_repository(url: str | None = None, *, timeout_s: float = 30.0) -> Repository:
    """The repository at a metadata URL (see `open_meta`). Raises ConfigError, MetadataUnavailable."""
    return Repository(open_meta(url, timeout_s=timeout_s))
