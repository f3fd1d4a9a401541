"""Bringing a stream of batches into path order with bounded memory.

Sorted input, the usual case for listings and exports, is noticed, and only spooled. Otherwise runs of RUN_BYTES are sorted in memory and written as Arrow files into a temporary folder, then merged. The
merge takes from every run what is not above the smallest end of the runs' current blocks, and sorts that in one step:
vectorised, and never more than one block per run in memory.
"""

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from .reader import row_at_or_after

RUN_BYTES = 192 * 1024 * 1024
BLOCK_ROWS = 16 * 1024
MERGE_WAYS = 64


def in_path_order(
    batches: Iterator[pa.RecordBatch], *, folder: Path | None = None
) -> Generator[pa.RecordBatch, None, None]:
    """The same rows, sorted by `path`, equal paths in the order of `line` where there is such a column.

    Whether the stream is sorted is only known at its end, so nothing is yielded before: what exceeds RUN_BYTES waits in
    files in `folder` (default: the system's temporary folder), and for sorted input is read back as it is.
    """
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    is_sorted = True
    last: str | None = None
    with tempfile.TemporaryDirectory(prefix="forebay-sort-", dir=folder) as name:
        runs = _Runs(Path(name))
        for batch in batches:
            if not batch.num_rows:
                continue
            if is_sorted:
                is_sorted = is_sorted_after(batch, last)
                last = batch.column("path")[batch.num_rows - 1].as_py()
            held.append(batch)
            held_bytes += batch.nbytes
            if held_bytes >= RUN_BYTES:
                runs.write(held, is_sorted=is_sorted)
                held, held_bytes = [], 0
        if is_sorted:
            yield from runs.in_sequence()
            yield from held
        elif not runs.count:
            yield from _sorted(held).to_batches(max_chunksize=BLOCK_ROWS)
        else:
            if held:
                runs.write(held, is_sorted=False)
            yield from runs.merged()


def is_sorted_after(batch: pa.RecordBatch, last: str | None) -> bool:
    """Whether the paths of the batch are in order (equal ones allowed) and not below `last`."""
    paths = batch.column("path")
    if last is not None and paths[0].as_py() < last:
        return False
    return bool(pc.all(pc.less_equal(paths.slice(0, len(paths) - 1), paths.slice(1))).as_py() in (True, None))


def _sorted(batches: list[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(batches)
    order = [("path", "ascending")]
    if "line" in table.column_names:
        order.append(("line", "ascending"))
    return table.take(pc.sort_indices(table, sort_keys=order)).combine_chunks()


class _Runs:
    """Sorted runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []
        self._made = 0

    @property
    def count(self) -> int:
        return len(self._files)

    def write(self, batches: list[pa.RecordBatch], *, is_sorted: bool) -> None:
        table = pa.Table.from_batches(batches) if is_sorted else _sorted(batches)
        self._store(table.schema, iter(table.to_batches(max_chunksize=BLOCK_ROWS)))

    def in_sequence(self) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            yield from _read(file)

    def merged(self) -> Iterator[pa.RecordBatch]:
        # Each open run costs one block of memory, so very many runs are merged in more than one pass.
        while len(self._files) > MERGE_WAYS:
            some, self._files = self._files[:MERGE_WAYS], self._files[MERGE_WAYS:]
            merged = _merge([_read(file) for file in some])
            first = next(merged)
            self._store(first.schema, _chained(first, merged))
            for file in some:
                file.unlink()
        yield from _merge([_read(file) for file in self._files])

    def _store(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        file = self._folder / f"run-{self._made:06}.arrow"
        self._made += 1
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
        self._files.append(file)


def _chained(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _read(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(file), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            if batch.num_rows:
                yield batch


def _merge(runs: list[Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    heads: list[tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]] = []
    for run in runs:
        first = next(run, None)
        if first is not None:
            heads.append((first, run))
    while heads:
        bound = min(batch.column("path")[batch.num_rows - 1].as_py() for batch, _ in heads)
        taken: list[pa.RecordBatch] = []
        left: list[tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]] = []
        for batch, run in heads:
            # Everything up to the bound, and all that equals it: `\0` makes the least text above the bound.
            cut = row_at_or_after(batch.column("path"), bound + "\0")
            if cut:
                taken.append(batch.slice(0, cut))
            rest: pa.RecordBatch | None = batch.slice(cut) if cut < batch.num_rows else next(run, None)
            if rest is not None:
                left.append((rest, run))
        heads = left
        yield from _sorted(taken).to_batches(max_chunksize=4 * BLOCK_ROWS)
