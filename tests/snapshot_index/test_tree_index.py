"""The index against a model: a dictionary of paths."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import PageCorrupt, SnapshotError
from forebay.snapshots import tree_index_layout
from forebay.snapshots.tree_index import Layout, Missing, TreeIndex
from forebay.snapshots.tree_index_build import build_tree_index
from forebay.tests.support.snapshot_rows import COMMIT_TIME_NS, Row, batches, build
from forebay.tiers.version import ObjectVersion

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)
etags = st.one_of(
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.binary(min_size=16, max_size=16).map(lambda raw: raw.hex() + "-12"),
    st.text("abcdef0123456789=-XYZ", max_size=40),
)
labels = st.one_of(
    st.none(), st.fixed_dictionaries({"class": st.sampled_from(["cat", "dog", "a/b", "..", 3, True, None, [1]])})
)


@st.composite
def versions(draw: st.DrawFn) -> list[Row]:
    """Rows that can be in one version: no path is also a folder."""
    # Few names at each level, so that folders are shared, and names that sort around "/" ("a-b" < "a/c" < "a0").
    part = st.one_of(st.sampled_from(["a", "a-b", "a.c", "a0", "b"]), names)
    paths = draw(st.lists(st.lists(part, min_size=1, max_size=4).map("/".join), unique=True, max_size=60))
    folders = {path[:i] for path in paths for i, char in enumerate(path) if char == "/"}
    return [
        Row(
            path,
            size=draw(st.integers(0, 2**40)),
            key=draw(st.one_of(st.none(), st.just(f"other/{path}"), st.just("elsewhere"))),
            store=draw(st.sampled_from(["s3://bucket", "s3://second@host:1"])),
            etag=draw(etags),
            version_id=draw(st.one_of(st.none(), st.just("v-1"))),
            mtime_ns=draw(st.one_of(st.none(), st.integers(1, 2**62))),
            sha256=draw(st.one_of(st.none(), st.just("ab" * 32))),
            labels=draw(labels),
        )
        for path in paths
        if path not in folders
    ]


def listing(index: TreeIndex, folder: int, step: int) -> list[tuple[int, bytes, int, int]]:
    places = index.child_range(folder)
    found = []
    for start in range(places.start, places.stop, step):
        found += index.children(start, min(start + step, places.stop))
    return found


@settings(max_examples=60, deadline=None)
@given(rows=versions(), batch_rows=st.integers(1, 9), step=st.integers(1, 5))
def test_every_path_leads_to_its_entry_and_nothing_else_does(rows: list[Row], batch_rows: int, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder, build(Path(folder), rows, batch_rows=batch_rows) as index:
        assert index.file_count == len(rows)
        assert index.header.total_bytes == sum(row.size for row in rows)
        children: dict[bytes, set[bytes]] = {b"": set()}
        for row in rows:
            path = row.path.encode()
            node = index.find(path)
            assert node is not Missing.MISSING
            assert index.path(node) == index.source_path(node) == path
            assert index.object_version(node) == ObjectVersion(
                row.store, row.full_key, row.etag, row.size, row.version_id
            )
            assert index.mtime_ns(node) == (row.mtime_ns or COMMIT_TIME_NS)
            assert index.sha256(node).decode() == (row.sha256 or "")
            parts = path.split(b"/")
            for depth in range(len(parts)):
                children.setdefault(b"/".join(parts[:depth]), set()).add(parts[depth])
        assert index.folder_count == len(children)
        for path, expected in children.items():
            folder_node = index.find(path)
            assert folder_node is not Missing.MISSING
            assert folder_node < index.folder_count
            listed = listing(index, folder_node, step)
            assert len(listed) == len(expected)
            assert {name for _, name, _, _ in listed} == expected
            for node, name, size, mtime_ns in listed:
                assert index.child(folder_node, name) == node
                assert index.parent(node) == folder_node
                if node >= index.folder_count:
                    assert (size, mtime_ns) == (index.size(node), index.mtime_ns(node))
            for absent in (b"nothing of that name", b""):
                assert index.child(folder_node, absent) is Missing.MISSING


@settings(max_examples=40, deadline=None)
@given(rows=versions(), batch_rows=st.integers(1, 9))
def test_by_label_shows_every_entry_once_in_the_folder_of_its_value(rows: list[Row], batch_rows: int) -> None:
    folders = {"cat": b"cat", "dog": b"dog", "a/b": b"a%2Fb", "..": b"%2E%2E", "3": b"3", "True": b"true"}
    with (
        tempfile.TemporaryDirectory() as folder,
        build(Path(folder), rows, label="class", batch_rows=batch_rows) as index,
    ):
        by_source = {index.source_path(node): node for node in index.files()}
        assert len(by_source) == len(rows)
        for row in rows:
            node = by_source[row.path.encode()]
            value = str(row.labels["class"]) if row.labels else ""
            path = index.path(node)
            assert path.split(b"/")[0] == folders.get(value, b"_unlabeled")
            assert index.find(path) == node
            assert index.object_version(node).key == row.full_key
        assert len({index.path(node) for node in index.files()}) == len(rows)


def test_equal_names_of_a_class_are_told_apart_by_their_paths_not_by_their_order(tmp_path: Path) -> None:
    cat, dog = {"class": "cat"}, {"class": "dog"}
    first = [
        Row("a/1.jpg", labels=cat),
        Row("b/1.jpg", labels=cat),
        Row("b/2.jpg", labels=cat),
        Row("c/1.jpg", labels=dog),
    ]
    more = [*first, Row("Z/1.jpg", labels=cat), Row("a/noext", labels=cat), Row("b/noext", labels=cat)]
    with build(tmp_path / "1", first, label="class") as index:
        before = {index.source_path(node): index.path(node) for node in index.files()}
        assert index.header.renamed == 2
    with build(tmp_path / "2", more, label="class") as index:
        after = {index.source_path(node): index.path(node) for node in index.files()}
        assert index.header.renamed == 5
    assert before.items() <= after.items()
    assert after[b"b/2.jpg"] == b"cat/2.jpg"
    assert after[b"c/1.jpg"] == b"dog/1.jpg"
    assert after[b"a/1.jpg"].startswith(b"cat/1~")
    assert after[b"a/1.jpg"].endswith(b".jpg")
    assert after[b"a/noext"].startswith(b"cat/noext~")
    assert len(set(after.values())) == len(more)


@pytest.mark.parametrize(
    ("labels_of_entry", "key", "folder"),
    [
        ({"a": {"b": "x"}}, "a.b", b"x"),
        ({"a.b": "dotted", "a": {"b": "nested"}}, "a.b", b"dotted"),
        ({"a": "x"}, "a.b", b"_unlabeled"),
        ({"a": {"type": "classification", "class": "cat", "data": ["cat"]}}, "a", b"cat"),
        ({"a": {"class": {"class": "cat"}}}, "a", b"_unlabeled"),
        (["a"], "a", b"_unlabeled"),
        ({"a": ""}, "a", b"_unlabeled"),
        ({"a": 1.5}, "a", b"1.5"),
        ({"a": "50%2F"}, "a", b"50%252F"),
        ({"a": "50% of"}, "a", b"50% of"),
    ],
)
def test_label_values_become_folders(tmp_path: Path, labels_of_entry: object, key: str, folder: bytes) -> None:
    with build(tmp_path, [Row("f", labels=labels_of_entry)], label=key) as index:
        (node,) = index.files()
        assert index.path(node) == folder + b"/f"


def test_a_long_label_value_is_cut_to_a_name_and_stays_distinct(tmp_path: Path) -> None:
    rows = [Row(f"{n}", labels={"k": "x" * 300 + str(n)}) for n in range(2)]
    with build(tmp_path, rows, label="k") as index:
        names_seen = {index.path(node).split(b"/")[0] for node in index.files()}
    assert len(names_seen) == 2
    assert {len(name) for name in names_seen} == {255}


def test_a_label_with_too_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_index_layout, "LABEL_FOLDER_LIMIT", 3)
    rows = [Row(f"{n}", labels={"id": n}) for n in range(4)]
    with pytest.raises(SnapshotError, match="'id' has more than 3 values; choose a label that names classes"):
        build(tmp_path, rows, label="id")


def test_labels_are_kept_as_json_and_huge_ones_are_left_out(tmp_path: Path) -> None:
    rows = [Row("a", labels={"x": 1}), Row("b", labels={"boxes": ["b" * 100] * 1000}), Row("c")]
    with build(tmp_path, rows) as index:
        a, b, c = index.files()
        assert index.labels_json(a) == b'{"x": 1}'
        assert index.labels_json(b).startswith(b'{"_omitted_bytes":10')
        assert index.labels_json(c) == b""


def test_entries_out_of_order_are_not_indexed(tmp_path: Path) -> None:
    wrong = [*batches([Row("b")]), *batches([Row("a")])]
    with pytest.raises(PageCorrupt, match=r"not in order: b'a' follows b'b'"):
        build_tree_index(tmp_path, wrong, commit="c", commit_time_ns=1, layout=Layout())


def test_an_empty_snapshot_is_an_empty_root(tmp_path: Path) -> None:
    with build(tmp_path, []) as index:
        assert (index.file_count, index.folder_count) == (0, 1)
        assert index.find(b"") == 0
        assert index.child(0, b"x") is Missing.MISSING
        assert len(index.child_range(0)) == 0


def test_what_a_snapshot_does_not_use_takes_no_space(tmp_path: Path) -> None:
    with build(tmp_path, [Row(f"d/{n:06}") for n in range(1000)], batch_rows=300) as index:
        assert not {"key", "version_id", "sha256", "etag_tail", "source_path"} & set(index.header.columns)
        assert index.describe()["index_bytes"] < 80 * 1000
