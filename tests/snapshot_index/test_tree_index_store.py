"""Indexes on disk: built once, rebuilt when damaged, pruned when not in use, whole or not there after a kill."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from forebay.errors import IndexDamaged
from forebay.snapshots.tree_index import Layout, Missing, TreeIndex, read_header
from forebay.snapshots.tree_index_store import TreeIndexStore, index_name
from forebay.tests.support.snapshot_rows import COMMIT, batches, build
from forebay.tests.support.tree_indexes import ROWS, Builds, build_until_killed, ensure, ensure_and_report


def test_an_index_is_built_once_per_commit_and_layout(tmp_path: Path) -> None:
    store, builds = TreeIndexStore(tmp_path), Builds(ROWS)
    assert store.open(COMMIT, Layout()) is None
    by_path = ensure(store, builds)
    by_label = ensure(store, builds, "class")
    assert builds.count == 2
    assert (ensure(store, builds), ensure(store, builds, "class")) == (by_path, by_label)
    assert builds.count == 2
    assert by_label[0] == b"0/0000"


def test_any_damage_to_any_file_is_noticed_and_the_index_built_again(tmp_path: Path) -> None:
    store, builds = TreeIndexStore(tmp_path), Builds(ROWS)
    paths = ensure(store, builds)
    folder = tmp_path / index_name(COMMIT, Layout())
    for count, name in enumerate(sorted(file.name for file in folder.iterdir()), 2):
        file = folder / name
        data = bytearray(file.read_bytes())
        match count % 3:
            case 0:
                file.unlink()
            case 1:
                file.write_bytes(data[:-1])
            case _:
                data[len(data) // 2] ^= 4
                file.write_bytes(data)
        with pytest.raises(IndexDamaged, match="tree index"):
            TreeIndex.open(folder)
        assert ensure(store, builds) == paths
        assert builds.count == count


def test_a_damaged_index_is_rebuilt_while_a_mount_still_has_it(tmp_path: Path) -> None:
    store, builds = TreeIndexStore(tmp_path), Builds(ROWS)
    with store.ensure(COMMIT, Layout(), builds, commit_time_ns=1) as held:
        (tmp_path / index_name(COMMIT, Layout()) / "header.json").write_text("{}")
        paths = ensure(store, builds)
        assert [held.index.path(node) for node in held.index.files()] == paths


def test_an_index_of_another_format_is_not_read(tmp_path: Path) -> None:
    build(tmp_path, ROWS).close()
    header = tmp_path / "header.json"
    header.write_bytes(replace(read_header(tmp_path), format=99).encode())
    with pytest.raises(IndexDamaged, match="has format forebay-tree-index 99"):
        TreeIndex.open(tmp_path)


def test_pruning_removes_what_was_used_longest_ago_and_never_what_is_open(tmp_path: Path) -> None:
    store, builds = TreeIndexStore(tmp_path), Builds(ROWS)
    for label in (None, "class", "other"):
        ensure(store, builds, label)
    for age, label in enumerate((None, "class", "other")):
        os.utime(tmp_path / index_name(COMMIT, Layout(label)) / "header.json", ns=(age, age))
    held = store.open(COMMIT, Layout())
    assert held is not None
    with held:
        os.utime(tmp_path / index_name(COMMIT, Layout()) / "header.json", ns=(0, 0))
        assert store.prune(0) == [index_name(COMMIT, Layout("class")), index_name(COMMIT, Layout("other"))]
        assert held.index.find(b"d0/0000") is not Missing.MISSING
    assert store.prune(1 << 30) == []
    assert store.prune(0) == [index_name(COMMIT, Layout())]
    assert store.open(COMMIT, Layout()) is None


def test_a_failed_build_leaves_nothing_that_looks_like_an_index(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches(ROWS[:20])
        raise OSError("the metadata store went away")

    store = TreeIndexStore(tmp_path)
    with pytest.raises(OSError, match="went away"):
        store.ensure(COMMIT, Layout(), failing, commit_time_ns=1)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert len(ensure(store, Builds(ROWS))) == len(ROWS)


def test_a_killed_build_is_neither_seen_nor_in_the_way(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    reached = context.Event()
    process = context.Process(target=build_until_killed, args=(str(tmp_path), reached))
    process.start()
    assert reached.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(180)
    store = TreeIndexStore(tmp_path)
    assert any(path.name.endswith(".part") for path in tmp_path.iterdir())
    assert store.open(COMMIT, Layout()) is None
    assert len(ensure(store, Builds(ROWS))) == len(ROWS)
    assert not any(path.name.endswith(".part") for path in tmp_path.iterdir())


def test_processes_that_want_one_index_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=ensure_and_report, args=(str(tmp_path), results)) for _ in range(3)]
    for process in processes:
        process.start()
    reports = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(180)
    results.close()
    results.join_thread()
    assert sorted(reports) == [(0, 50), (0, 50), (1, 50)]
