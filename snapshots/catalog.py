"""The names in a metadata store: datasets, the versions that `dataset@ref` finds, tags and branches."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from ..errors import RefMoved, RefNotFound, UsageError
from .commits import Commit
from .history import History
from .holds import Hold
from .metastore import CommitId, DatasetRecord, MetaStore, Moved
from .names import LATEST, MAIN, RefName, check_dataset_name, check_ref_name, not_found, parse_ref
from .reader import PageReader
from .snapshot import Snapshot, find_snapshot


class Catalog:
    """Finds and names versions; `Repository` adds what makes them. A context manager; leaving it closes the store."""

    def __init__(self, meta: MetaStore) -> None:
        self.meta = meta
        self.reader = PageReader(meta)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.meta.close()

    # --- Datasets.

    def create_dataset(self, name: str, description: str = "") -> DatasetRecord:
        """Raises UsageError for a bad name or one that is taken."""
        if not self.meta.create_dataset(check_dataset_name(name), description):
            raise UsageError(f"there is a dataset {name!r} already in {self.meta.name}")
        return self.dataset(name)

    def ensure_dataset(self, name: str) -> DatasetRecord:
        """The dataset, made when it is not there."""
        self.meta.create_dataset(check_dataset_name(name), "")
        return self.dataset(name)

    def datasets(self) -> list[DatasetRecord]:
        """All datasets, by name."""
        found = (self.meta.dataset(name) for name in self.meta.dataset_names())
        return [record for record in found if record is not None]

    def dataset(self, name: str) -> DatasetRecord:
        """Raises RefNotFound, with near names."""
        record = self.meta.dataset(check_dataset_name(name))
        if record is None:
            raise not_found(f"there is no dataset {name!r}", name, self.meta.dataset_names())
        return record

    def delete_dataset(self, name: str) -> None:
        """Remove a dataset with its refs; gc frees what only it reached. Leases of mounts keep what they hold."""
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
