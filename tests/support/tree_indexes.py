"""What tests of the index store do, here also because child processes have to find it by name."""

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from forebay.snapshots.tree_index import Layout
from forebay.snapshots.tree_index_store import TreeIndexStore

from .snapshot_rows import COMMIT, COMMIT_TIME_NS, Row, batches

ROWS = [Row(f"d{n % 3}/{n:04}", size=n, labels={"class": n % 2}) for n in range(50)]


class Builds:
    """Entries that count how often they were asked for."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.count = 0

    def __call__(self) -> Iterable[pa.RecordBatch]:
        self.count += 1
        return batches(self.rows)


def ensure(store: TreeIndexStore, builds: Builds, label: str | None = None) -> list[bytes]:
    """The paths of the index, built if need be."""
    with store.ensure(COMMIT, Layout(label), builds, commit_time_ns=COMMIT_TIME_NS) as found:
        return [found.index.path(node) for node in found.index.files()]


def build_until_killed(root: str, reached: "multiprocessing.synchronize.Event") -> None:
    def endless() -> Iterator[pa.RecordBatch]:
        yield from batches(ROWS[:20])
        reached.set()
        time.sleep(600)

    TreeIndexStore(Path(root)).ensure(COMMIT, Layout(), endless, commit_time_ns=1)


def ensure_and_report(root: str, results: "multiprocessing.queues.Queue[tuple[int, int]]") -> None:
    builds = Builds(ROWS)
    paths = ensure(TreeIndexStore(Path(root)), builds)
    results.put((builds.count, len(paths)))
