"""The graph of commits: log, ancestry, and the point from which two versions diverged."""

import heapq
from collections.abc import Iterator, Sequence

from .commits import Commit, decode_commit
from .metastore import CommitId, MetaStore


class History:
    """Commits of one store, read by levels and kept: each is small, and a walk needs each once."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._known: dict[CommitId, Commit] = {}

    def commits(self, ids: Sequence[CommitId]) -> dict[CommitId, Commit]:
        """Those that are there (gc may have taken ancestors of what only a lease holds). Raises PageCorrupt."""
        unknown = [commit_id for commit_id in ids if commit_id not in self._known]
        if unknown:
            for commit_id, data in self._meta.get_commits(unknown).items():
                self._known[commit_id] = decode_commit(commit_id, data)
        return {commit_id: self._known[commit_id] for commit_id in ids if commit_id in self._known}

    def log(self, heads: Sequence[CommitId]) -> Iterator[Commit]:
        """All ancestors of the heads, each once, children before parents, newest first where that leaves a choice."""
        children = self._count_children(heads)
        # A commit is ready when all its children are out; the clocks of writers cannot break the order.
        ready = [(-c.time_ms, c.id) for c in self.commits(list(dict.fromkeys(heads))).values() if not children[c.id]]
        heapq.heapify(ready)
        while ready:
            _, commit_id = heapq.heappop(ready)
            commit = self._known[commit_id]
            yield commit
            for parent in self.commits(list(dict.fromkeys(commit.parents))).values():
                children[parent.id] -= 1
                if not children[parent.id]:
                    heapq.heappush(ready, (-parent.time_ms, parent.id))

    def ancestors(self, head: CommitId) -> set[CommitId]:
        """The commit itself and all its ancestors."""
        return set(self._count_children([head]))

    def merge_base(self, ours: CommitId, theirs: CommitId) -> Commit | None:
        """A common ancestor that is no ancestor of another one (the newest of several); None without a common history."""
        common = self.ancestors(ours) & self.ancestors(theirs)
        for commit in self.log([ours]):
            if commit.id in common:
                return commit
        return None

    def _count_children(self, heads: Sequence[CommitId]) -> dict[CommitId, int]:
        children = dict.fromkeys(heads, 0)
        level = list(children)
        while level:
            following: list[CommitId] = []
            for commit in self.commits(level).values():
                for parent in dict.fromkeys(commit.parents):
                    if parent not in children:
                        children[parent] = 0
                        following.append(parent)
                    children[parent] += 1
            level = following
        return children
