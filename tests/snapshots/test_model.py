"""A long random history against a simple model, on both stores: dictionaries of entries per version.

Pages are made tiny, so that a history of a hundred entries has many pages and parts. After every step the branch that
changed holds exactly what the model says, and its root is the one that building the same entries from scratch gives: edits,
merges, selections and imports all lead to the same pages. gc runs in between with no grace at all, and takes nothing.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from forebay.errors import ManifestError, RefNotFound
from forebay.snapshots import (
    Entry,
    LabelChange,
    MergeConflict,
    Repository,
    Selection,
    batch_of,
    builder,
    entries_of,
    open_repository,
    puts,
    removals,
    sorted_edits,
)
from forebay.snapshots.builder import VersionBuilder
from forebay.snapshots.entries import concat_batches
from forebay.tiers.version import ObjectVersion

Content = dict[str, Entry]
TINY = {"MIN_ENTRIES": 2, "MAX_ENTRIES": 9, "CUT_ONE_IN": 4, "MIN_REFS": 2, "MAX_REFS": 5, "CUT_REFS_ONE_IN": 3}

files = st.one_of(
    st.builds("d{}/f{:02}".format, st.integers(0, 5), st.integers(0, 20)),
    st.sampled_from(["d1", "d1-", "d1/f01/x", "d2.", "d3/f0", "a", "a/b", "a/b/c", "z", "d5/f20/y"]),
)
etags = st.sampled_from(["e1", "e2", "d41d8cd98f00b204e9800998ecf8427e"])
label_values = st.sampled_from([None, {"c": "x"}, {"c": "y"}, {"c": "x", "n": 1}, {"l": [1, 2]}, {"c": 7}])
contents = st.dictionaries(files, st.tuples(etags, st.integers(0, 50), label_values), max_size=60)
branches = st.sampled_from(["main", "side", "other"])


def entry(path: str, etag: str, size: int, labels: Any) -> Entry:
    return Entry(path, ObjectVersion("s3://b", path, etag, size), labels=labels)


def entries(drawn: dict[str, tuple[str, int, Any]]) -> Content:
    return {path: entry(path, *drawn[path]) for path in sorted(drawn, key=str.encode)}


def is_possible(paths: set[str]) -> bool:
    """No path is a folder of another one."""
    parts = (path.split("/") for path in paths)
    return not any("/".join(p[:n]) in paths for p in parts for n in range(1, len(p)))


class History(RuleBasedStateMachine):
    url = ""
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        for name, value in TINY.items():
            patch.setattr(builder, name, value)
        self.repo: Repository = self.cleanup.enter_context(open_repository(self.url))
        # One store serves all histories of a test; each has a dataset of its own.
        self.name = f"d{next(self.numbers)}"
        self.heads: dict[str, Content] = {}
        self.versions: list[Content] = []
        self.tags: dict[str, Content] = {}
        self.bases: dict[str, Content] = {}
        self.changed: str | None = None

    @initialize()
    def start(self) -> None:
        self.repo.create_dataset(self.name)

    def teardown(self) -> None:
        for name in self.repo.meta.dataset_names():
            self.repo.delete_dataset(name)
        collector = self.repo.collector(grace_s=0)
        collector.mark()
        collector.sweep()
        left = list(self.repo.meta.page_states())
        self.cleanup.close()
        assert left == [], "without datasets there is nothing to keep"

    def moved(self, branch: str, content: Content) -> None:
        content = {path: content[path] for path in sorted(content, key=str.encode)}
        if branch not in self.heads or self.heads[branch] != content:
            self.versions.append(content)
        self.heads[branch] = content
        self.changed = branch

    def new_version(self, branch: str, content: Content) -> None:
        """A version that is made even when its content is that of the head."""
        self.heads.pop(branch, None)
        self.moved(branch, content)

    @rule(branch=branches, drawn=contents, as_manifest=st.booleans(), shuffled=st.randoms(use_true_random=False))
    def import_(self, branch: str, drawn: dict[str, Any], as_manifest: bool, shuffled: Any) -> None:
        content = entries(drawn)
        with self.fails_unless(is_possible(set(content))):
            if as_manifest:
                lines = [
                    json.dumps(
                        {"url": f"s3://b/{p}", "size": e.version.size, "etag": e.version.etag, "labels": e.labels}
                    )
                    for p, e in content.items()
                ]
                shuffled.shuffle(lines)
                self.repo.import_manifest(self.name, io.BytesIO("\n".join(lines).encode()), branch=branch)
            else:
                self.repo.create(self.name, self.batches(list(content.values())), branch=branch)
            self.moved(branch, content)

    @rule(branch=branches, drawn=contents, gone=st.sets(files, max_size=20))
    def edit(self, branch: str, drawn: dict[str, Any], gone: set[str]) -> None:
        put = {path: e for path, e in entries(drawn).items() if path not in gone}
        before = self.heads.get(branch, {})
        after = {path: e for path, e in before.items() if path not in gone} | put
        edits = sorted_edits([removals(pa.array(sorted(gone), pa.string())), puts(batch_of(list(put.values())))])
        with self.fails_unless(is_possible(set(after))):
            counts = self.repo.edit(self.name, edits, branch=branch).counts
            self.moved(branch, after)
            assert counts.added == len(put.keys() - before.keys())
            assert counts.replaced == len(put.keys() & before.keys())
            assert counts.removed == len(gone & before.keys())
            assert counts.absent == len(gone - before.keys())

    @rule(branch=branches, folder=st.sampled_from(["d1/", "d2/", "a/", "d9/"]), path=files)
    def remove(self, branch: str, folder: str, path: str) -> None:
        before = self.heads.get(branch, {})
        self.repo.remove(self.name, paths=[folder, path], branch=branch)
        self.moved(branch, {p: e for p, e in before.items() if p != path and not p.startswith(folder)})

    @rule(branch=branches, value=st.sampled_from(["x", "new"]), folder=st.sampled_from(["d0", "d1", "a"]))
    def label(self, branch: str, value: str, folder: str) -> None:
        change = LabelChange(put={("c",): value}, remove=[("n",)])
        self.repo.label(self.name, change, Selection(folder=folder), branch=branch)

        def changed(e: Entry) -> Entry:
            labels = {key: item for key, item in (e.labels or {}).items() if key != "n"} | {"c": value}
            return Entry(e.path, e.version, labels=labels)

        before = self.heads.get(branch, {})
        self.moved(branch, {p: changed(e) if p.startswith(folder + "/") else e for p, e in before.items()})

    @precondition(lambda self: self.heads)
    @rule(data=st.data(), target_branch=branches)
    def select(self, data: st.DataObject, target_branch: str) -> None:
        source = data.draw(st.sampled_from(sorted(self.heads)))
        condition, predicate = data.draw(
            st.sampled_from(
                [
                    ('label.c == "x"', lambda e: (e.labels or {}).get("c") == "x"),
                    ("size < 25", lambda e: e.version.size < 25),
                    (
                        'path like "d1/%" or label.n == 1',
                        lambda e: e.path.startswith("d1/") or (e.labels or {}).get("n") == 1,
                    ),
                    ('not label.c == "y"', lambda e: (e.labels or {}).get("c") != "y"),
                ]
            )
        )
        made = self.repo.select(f"{self.name}@{source}", Selection(where=condition), branch=target_branch)
        content = {path: e for path, e in self.heads[source].items() if predicate(e)}
        if made.unchanged:
            self.changed = target_branch
            assert self.heads[target_branch] == content
        else:
            self.new_version(target_branch, content)

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), branch=branches)
    def rollback(self, data: st.DataObject, branch: str) -> None:
        number = data.draw(st.integers(1, len(self.versions)))
        try:
            self.repo.rollback(f"{self.name}@v{number}", branch=branch)
        except RefNotFound:  # gc has taken a version that nothing reached any more
            return
        self.moved(branch, self.versions[number - 1])

    @precondition(lambda self: self.heads)
    @rule(data=st.data(), branch=branches, tag=st.sampled_from(["t1", "t2"]))
    def tag_or_branch(self, data: st.DataObject, branch: str, tag: str) -> None:
        source = data.draw(st.sampled_from(sorted(self.heads)))
        self.repo.tag(f"{self.name}@{source}", tag, force=True)
        self.tags[tag] = self.heads[source]
        self.repo.branch(f"{self.name}@{source}", branch, force=True)
        self.heads[branch] = self.heads[source]

    @precondition(lambda self: self.heads)
    @rule(branch=branches)
    def delete_branch(self, branch: str) -> None:
        if branch in self.heads:
            self.repo.delete_ref(self.name, "branch", branch)
            del self.heads[branch]

    @precondition(lambda self: self.heads)
    @rule(data=st.data(), ours=contents, theirs=contents)
    def merge(self, data: st.DataObject, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Two branches from one head, each with a small edit, merged."""
        source = data.draw(st.sampled_from(sorted(self.heads)))
        base = self.heads[source]
        sides = [base | entries(dict(list(drawn.items())[:6])) for drawn in (ours, theirs)]
        if not all(is_possible(set(side)) for side in sides):
            return
        # By its id: the source may be one of the branches that are moved here.
        start = f"{self.name}@{self.repo.resolve(f'{self.name}@{source}').commit.id.hex()}"
        for branch, side in zip(("left", "right"), sides, strict=True):
            self.repo.branch(start, branch, force=True)
            self.heads[branch] = base
            edits = puts(batch_of([side[p] for p in sorted(side, key=str.encode) if base.get(p) != side[p]]))
            self.repo.edit(self.name, [edits], branch=branch)
            self.moved(branch, side)
        left, right = sides
        changed = {p for p in left.keys() | right.keys() if left.get(p) != base.get(p) and right.get(p) != base.get(p)}
        conflict = any(left.get(p) != right.get(p) for p in changed)
        merged = left | {p: e for p, e in right.items() if e != base.get(p)}
        try:
            made, _ = self.repo.merge(f"{self.name}@right", branch="left")
        except MergeConflict:
            assert conflict
        except ManifestError:
            assert not is_possible(set(merged))
        else:
            assert not conflict
            if not made.unchanged:
                self.new_version("left", merged)

    @rule(sweep=st.booleans())
    def collect(self, sweep: bool) -> None:
        collector = self.repo.collector(grace_s=0)
        planned = collector.plan()
        marked = collector.mark()
        assert marked.pages == planned.pages
        assert marked.commits == planned.commits
        if sweep:
            swept = collector.sweep()
            assert swept.pages >= marked.pages
            assert collector.plan().pages == 0

    @invariant()
    def the_changed_branch_is_right(self) -> None:
        branch, self.changed = self.changed, None
        if branch is None or branch not in self.heads:
            return
        snapshot = self.repo.resolve(f"{self.name}@{branch}")
        found = entries_of(concat_batches(list(snapshot.batches())))
        wanted = list(self.heads[branch].values())
        assert found == wanted
        assert snapshot.commit.entry_count == len(wanted)
        assert snapshot.commit.size_bytes == sum(e.version.size for e in wanted)
        with VersionBuilder(self.repo.meta) as scratch:
            for batch in self.batches(wanted):
                scratch.add(batch)
            assert scratch.finish().root == snapshot.root

    @invariant()
    def every_ref_can_be_read(self) -> None:
        for name, content in [*self.heads.items(), *self.tags.items()]:
            snapshot = self.repo.resolve(f"{self.name}@{name}")
            assert sum(batch.num_rows for batch in snapshot.batches()) == len(content)

    @precondition(lambda self: len(self.heads) >= 2)
    @rule(data=st.data())
    def diff(self, data: st.DataObject) -> None:
        old, new = (data.draw(st.sampled_from(sorted(self.heads))) for _ in range(2))
        found: dict[str, str] = {}
        for batch in self.repo.diff(f"{self.name}@{old}", f"{self.name}@{new}"):
            found.update(zip(batch.column("path").to_pylist(), batch.column("change").to_pylist(), strict=True))
        before, after = self.heads[old], self.heads[new]

        def word(path: str) -> str:
            if path not in before:
                return "added"
            if path not in after:
                return "removed"
            kinds = [before[path].version != after[path].version, before[path].labels != after[path].labels]
            return "+".join(itertools.compress(("content", "labels"), kinds))

        assert found == {p: word(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        assert list(found) == sorted(found, key=str.encode)

    @contextlib.contextmanager
    def fails_unless(self, possible: bool) -> Iterator[None]:
        if possible:
            yield
            return
        with pytest.raises(ManifestError):
            yield

    @staticmethod
    def batches(rows: list[Entry]) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), 7):
            yield batch_of(rows[start : start + 7])


def test_a_random_history(meta_url: str, tmp_path: Path) -> None:
    History.url = meta_url
    is_mongo = meta_url.startswith("mongodb")
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=8 if is_mongo else 15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
