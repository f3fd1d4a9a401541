"""One version in the making: the lease on what it builds upon, and the publishing.

The order is the protocol (docs/design/0003-snapshot-gc.md): lease, look at gc, store pages, look at gc again, store the commit, move
the branch by compare-and-swap. Dying anywhere before the last step leaves nothing that anybody sees.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from ..errors import RefMoved, UsageError
from .builder import Built, empty_root
from .commits import Commit, make_commit
from .holds import Hold, user_name
from .metastore import CommitId, DatasetRecord, MetaStore, Moved
from .names import check_ref_name
from .pages import PageId
from .reader import PageReader
from .snapshot import Snapshot, find_snapshot


@dataclass(frozen=True, slots=True)
class Note:
    """What a person wants to know of a commit later. `command` is the command line without secrets."""

    message: str = ""
    author: str = ""
    command: str = ""


NO_NOTE = Note()


@dataclass(frozen=True, slots=True)
class Made:
    """A version that an operation published (or found to exist: `unchanged`, then it is the branch's head as before).

    `new_pages` and `new_bytes`: what the metadata store holds more than before.
    """

    snapshot: Snapshot
    new_pages: int
    new_bytes: int
    unchanged: bool = False


class Writing:
    """One version in the making on one branch: the lease, the base, and the publishing."""

    def __init__(
        self,
        meta: MetaStore,
        reader: PageReader,
        record: DatasetRecord,
        branch: str,
        operation: str,
        source: Snapshot | None = None,
    ) -> None:
        self._meta = meta
        self._reader = reader
        self._branch = check_ref_name(branch, "branch")
        self._operation = operation
        self._source = source
        if branch in record.tags:
            raise UsageError(f"{branch!r} is a tag of {record.name}, and tags do not move", remedy="name a branch")
        self._dataset = record.name
        self._expected = record.branches.get(branch)
        self.head: Commit | None = None
        self._holds: list[Hold] = []

    def __enter__(self) -> "Writing":
        try:
            what = f"{self._operation} on {self._dataset}@{self._branch}"
            hold = Hold(self._meta, self._dataset, self._expected, purpose="write", what=what)
            self._holds.append(hold)
            if self._expected is not None:
                self.head = self._snapshot(self._expected).commit
                hold.secure_commit(self._reader, self.head)
            if self._source is not None:
                commit = self._source.commit
                self._holds.append(Hold(self._meta, self._dataset, commit.id, purpose="write", what=what))
                self._holds[-1].secure_commit(self._reader, commit)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._holds:
            self._holds.pop().release()

    def root(self) -> PageId:
        """The root of what is built upon."""
        return self.head.root if self.head else empty_root(self._meta)

    def publish(self, built: Built, note: Note, *, merged: bool = True) -> Made:
        """Make the version the head of the branch. Raises RefMoved when somebody else moved the branch meanwhile."""
        source = self._source.commit.id if self._source and merged else None
        # Made again from the same source, the same content is no new version.
        if (
            self.head is not None
            and self.head.root == built.root
            and source in (None, self.head.id, *self.head.parents)
        ):
            return Made(self._snapshot(self.head.id), 0, 0, unchanged=True)
        for hold in self._holds:
            hold.secure(self._reader, built.root)
        parents = [parent for parent in (self._expected, source) if parent is not None]
        commit, data = make_commit(
            dataset=self._dataset,
            parents=tuple(dict.fromkeys(parents)),
            root=built.root,
            author=note.author or user_name(),
            message=note.message,
            time_ms=self._meta.now_ms(),
            command=note.command,
            entry_count=built.entry_count,
            size_bytes=built.size_bytes,
        )
        self._meta.put_commit(commit.id, self._dataset, data)
        outcome = self._meta.publish(self._dataset, self._branch, self._expected, commit.id)
        if isinstance(outcome, Moved):
            now = f"is at {outcome.current.hex()[:12]} now" if outcome.current else "is gone"
            raise RefMoved(
                f"somebody else moved {self._dataset}@{self._branch} while this {self._operation} ran: it {now}",
                remedy="look at what changed and run it again",
            )
        snapshot = Snapshot(self._dataset, self._branch, outcome.number, commit, self._reader)
        return Made(snapshot, built.new_pages, built.new_bytes)

    def _snapshot(self, commit_id: CommitId) -> Snapshot:
        return find_snapshot(self._meta, self._reader, self._dataset, self._branch, commit_id)


_SECRET = re.compile(
    r"(?<=://)[^/@\s]*@|(?<=[?&;])(?:[^=&\s]*(?:token|secret|password|signature|key)[^=&\s]*)=[^&\s]*", re.IGNORECASE
)


def command_line(argv: Sequence[str]) -> str:
    """A command line as it goes into a commit: quoted for a shell, without passwords and signatures in URLs."""
    return _SECRET.sub("", shlex.join(argv))
