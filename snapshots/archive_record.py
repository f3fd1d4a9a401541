"""Which versions are archived, and where: a second root of the same version, held by a tag of its own.

The tag `archive-<commit id>` names a commit whose pages have the same paths and labels as the version, with the objects
of the archive. It is an ordinary tag, so gc keeps it, and goes with the dataset; it has no version number, and is not
shown among the tags. Recording an archive again (another place) moves the tag.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from ..errors import PageCorrupt, RefMoved
from .builder import VersionBuilder
from .commits import Commit, decode_commit, make_commit
from .holds import Hold
from .metastore import Moved
from .repository import Repository
from .snapshot import Snapshot
from .writing import Note

TAG_PREFIX = "archive-"


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """The archive of a version: its commit (whose root has the archived objects) and where they lie."""

    commit: Commit

    @property
    def url(self) -> str:
        return self.commit.message


def archive_of(repository: Repository, snapshot: Snapshot) -> ArchiveRecord | None:
    """The archive of a version; None if it has none."""
    commit_id = repository.dataset(snapshot.dataset).tags.get(TAG_PREFIX + snapshot.commit.id.hex())
    if commit_id is None:
        return None
    data = repository.meta.get_commits([commit_id]).get(commit_id)
    if data is None:
        raise PageCorrupt(f"the record of the archive of {snapshot.version_name} is missing from the metadata store")
    return ArchiveRecord(decode_commit(commit_id, data))


def record_archive(
    repository: Repository, snapshot: Snapshot, entries: Iterable[pa.RecordBatch], url: str, note: Note
) -> ArchiveRecord:
    """Store the archived entries and record them. Nothing is recorded if `entries` raises. Raises RefMoved."""
    meta, reader = repository.meta, repository.reader
    tag = TAG_PREFIX + snapshot.commit.id.hex()
    expected = repository.dataset(snapshot.dataset).tags.get(tag)
    with Hold(meta, snapshot.dataset, snapshot.commit.id, purpose="write", what="archive") as hold:
        hold.secure_commit(reader, snapshot.commit)
        with VersionBuilder(meta, reader) as builder:
            for batch in entries:
                builder.add(batch)
            built = builder.finish()
        commit, data = make_commit(
            dataset=snapshot.dataset,
            parents=(snapshot.commit.id,),
            root=built.root,
            author=note.author,
            message=url,
            time_ms=meta.now_ms(),
            command=note.command,
            entry_count=built.entry_count,
            size_bytes=built.size_bytes,
        )
        if hold.gc_interfered():
            hold.secure(reader, built.root)
        meta.put_commit(commit.id, snapshot.dataset, data)
        if isinstance(meta.set_ref(snapshot.dataset, "tag", tag, expected, commit.id), Moved):
            raise RefMoved(f"somebody else archived {snapshot.version_name} meanwhile", remedy="nothing is left to do")
    return ArchiveRecord(commit)
