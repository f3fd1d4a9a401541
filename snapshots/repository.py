"""Data sets and their versions: every operation, under the names of the commands.

A `Repository` is a metadata store and what can be done with it. Operations that make a version follow one pattern: take
a write lease on what is built upon, store pages, then publish by compare-and-swap on the branch. Whoever loses
that race gets RefMoved, with nothing changed but unreachable pages; gc never takes what a running operation relies on.

All methods are synchronous and may take long; on an event loop, call them through `asyncio.to_thread`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa

from ..errors import RefMoved, RefNotFound, UsageError
from ..tiers.understore import ListPage
from .builder import Built, VersionBuilder, empty_root
from .commits import Commit
from .diff import diff_roots
from .edits import EditCounts, apply_edits, puts, removals, sorted_edits
from .exporting import manifest_lines
from .gc import DEFAULT_GRACE_S, Collector
from .history import History
from .holds import DEFAULT_TTL_S, Hold
from .importing import ImportProgress, ManifestImport, ManifestOptions, entries_of_listing
from .merge import Conflicts, MergeConflict, OnConflict, merge_edits
from .metastore import CommitId, DatasetRecord, LeaseRecord, MetaStore, Moved, open_meta
from .names import LATEST, MAIN, RefName, check_dataset_name, check_ref_name, not_found, parse_ref
from .object_listing import ListingParser
from .pages import PageId
from .reader import PageReader
from .relabel import LabelChange
from .selection import Selection, build_selection, selected_batches
from .snapshot import Snapshot, find_snapshot
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


class Repository:
    """Everything that can be done with one metadata store. A context manager; leaving it closes the store."""

    def __init__(self, meta: MetaStore) -> None:
        self.meta = meta
        self.reader = PageReader(meta)

    def __enter__(self) -> "Repository":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.meta.close()

    # --- Data sets.

    def create_dataset(self, name: str, description: str = "") -> DatasetRecord:
        """Raises UsageError for a bad name or one that is taken."""
        if not self.meta.create_dataset(check_dataset_name(name), description):
            raise UsageError(f"there is a data set {name!r} already in {self.meta.name}")
        return self.dataset(name)

    def ensure_dataset(self, name: str) -> DatasetRecord:
        """The data set, made when it is not there."""
        self.meta.create_dataset(check_dataset_name(name), "")
        return self.dataset(name)

    def datasets(self) -> list[DatasetRecord]:
        """All data sets, by name."""
        found = (self.meta.dataset(name) for name in self.meta.dataset_names())
        return [record for record in found if record is not None]

    def dataset(self, name: str) -> DatasetRecord:
        """Raises RefNotFound, with near names."""
        record = self.meta.dataset(check_dataset_name(name))
        if record is None:
            raise not_found(f"there is no data set {name!r}", name, self.meta.dataset_names())
        return record

    def delete_dataset(self, name: str) -> None:
        """Remove a data set with its refs; gc frees what only it reached. Leases of mounts keep what they hold."""
        self.dataset(name)
        self.meta.delete_dataset(name)

    # --- Finding versions.

    def resolve(self, text: str) -> Snapshot:
        """The version that `dataset@ref` names. Raises UsageError for a bad name, RefNotFound with near names."""
        name = parse_ref(text)
        record = self.dataset(name.dataset)
        commit_id = self._commit_id(name, record)
        return find_snapshot(self.meta, self.reader, record.name, name.ref, commit_id)

    def _commit_id(self, name: RefName, record: DatasetRecord) -> CommitId:
        if name.ref == LATEST:
            head = record.branches.get(MAIN)
            if head is None:
                raise not_found(f"{name.dataset} has no version on the branch {MAIN!r} yet", MAIN, record.branches)
            return head
        if name.number is not None:
            versions = self.meta.versions(name.dataset)
            if name.number > len(versions):
                remedy = f"its newest version is v{len(versions)}" if versions else "it has no versions yet"
                raise RefNotFound(f"{name.dataset} has no version v{name.number}", remedy=remedy)
            return versions[name.number - 1]
        for refs in (record.tags, record.branches):
            if name.ref in refs:
                return refs[name.ref]
        if name.id_prefix is not None:
            found = self.meta.find_commits(name.dataset, name.id_prefix, 2)
            if len(found) == 1:
                return found[0]
            if found:
                raise RefNotFound(f"{name} fits more than one version", remedy="give more digits of the id")
        raise not_found(
            f"{name.dataset} has no tag, branch or version {name.ref!r}",
            name.ref,
            [*record.tags, *record.branches, LATEST],
        )

    def versions(self, dataset: str) -> list[Snapshot]:
        """All versions that still exist, newest first."""
        ids = self.meta.versions(self.dataset(dataset).name)
        found = History(self.meta).commits(ids)
        numbered = [(number, found[commit_id]) for number, commit_id in enumerate(ids, 1) if commit_id in found]
        return [Snapshot(dataset, f"v{number}", number, commit, self.reader) for number, commit in reversed(numbered)]

    def log(self, text: str) -> Iterator[Commit]:
        """The history of a version, children before parents, newest first; `dataset` alone: of all its refs."""
        record = self.dataset(text.partition("@")[0])
        if "@" in text:
            heads: Sequence[CommitId] = [self.resolve(text).commit.id]
        else:
            heads = [*record.branches.values(), *record.tags.values()]
        return History(self.meta).log(heads)

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
        """A version with the selected entries of another, on a branch of the same data set (made when it is not there)."""
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

    # --- Refs.

    def tag(self, text: str, name: str, *, force: bool = False) -> Snapshot:
        """Give a version a name that stays. Raises UsageError when the tag is taken, unless `force`."""
        return self._set_ref("tag", text, name, force=force)

    def branch(self, text: str, name: str, *, force: bool = False) -> Snapshot:
        """Start a branch at a version. Raises UsageError when the branch is there, unless `force`."""
        return self._set_ref("branch", text, name, force=force)

    def _set_ref(self, kind: str, text: str, name: str, *, force: bool) -> Snapshot:
        source = self.resolve(text)
        check_ref_name(name, kind)
        record = self.dataset(source.dataset)
        mine, others = (record.tags, record.branches) if kind == "tag" else (record.branches, record.tags)
        if name in others:
            raise UsageError(f"{name!r} is already a {'branch' if kind == 'tag' else 'tag'} of {source.dataset}")
        current = mine.get(name)
        if current is not None and current != source.commit.id and not force:
            raise UsageError(
                f"the {kind} {name!r} of {source.dataset} is at {current.hex()[:12]} already",
                remedy="use --force to move it",
            )
        with Hold(self.meta, source.dataset, source.commit.id, purpose="write", what=f"{kind} {name}") as hold:
            hold.secure_commit(self.reader, source.commit)
            outcome = self.meta.set_ref(source.dataset, kind, name, current, source.commit.id)
        if isinstance(outcome, Moved):
            raise RefMoved(f"somebody else moved the {kind} {name!r} first", remedy="look at it and try again")
        return source

    def delete_ref(self, dataset: str, kind: str, name: str) -> CommitId:
        """Remove a tag or branch; returns where it was. Versions that only it reached become garbage."""
        record = self.dataset(dataset)
        refs = record.tags if kind == "tag" else record.branches
        if name not in refs:
            raise not_found(f"{dataset} has no {kind} {name!r}", name, refs)
        if isinstance(self.meta.set_ref(dataset, kind, name, refs[name], None), Moved):
            raise RefMoved(f"somebody else moved the {kind} {name!r} first", remedy="look at it and try again")
        return refs[name]

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
