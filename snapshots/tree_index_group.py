"""Grouping the nodes of a tree by a number (their parent, their lookup bucket): a counting sort over mapped files.

Rows of the result for group g are ids[start[g]:start[g+1]], in ascending order of node. Only a chunk of nodes is in
memory at a time; `start` and `ids` are mapped files, whose pages the kernel may write back when it likes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from .tree_index_columns import Numbers

CHUNK_NODES: Final = 1 << 20

KeysOf = Callable[[int, int], Numbers]
"""The group of each node of [start, stop)."""


def group_nodes(keys_of: KeysOf, nodes: range, group_count: int, start_path: Path, ids_path: Path) -> None:
    """Write the u32 files `start` (group_count + 1) and `ids` (one per node)."""
    start = np.memmap(start_path, "<u4", "w+", shape=(group_count + 1,))
    for lo, hi in _chunks(nodes):
        np.add.at(start, keys_of(lo, hi).astype(np.int64) + 1, 1)
    total = np.uint32(0)
    for lo, hi in _chunks(range(group_count + 1)):
        part = start[lo:hi]
        np.cumsum(part, out=part)
        part += total
        total = part[-1]
    if len(nodes):
        _scatter(keys_of, nodes, start, start_path.with_name(start_path.name + ".next"), ids_path)
    else:
        ids_path.touch()
    start.flush()


def _scatter(keys_of: KeysOf, nodes: range, start: Numbers, next_path: Path, ids_path: Path) -> None:
    """Put each node at the next free place of its group."""
    ids = np.memmap(ids_path, "<u4", "w+", shape=(len(nodes),))
    following = np.memmap(next_path, "<u4", "w+", shape=start.shape)
    for lo, hi in _chunks(range(len(start))):
        following[lo:hi] = start[lo:hi]
    for lo, hi in _chunks(nodes):
        keys = keys_of(lo, hi)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order].astype(np.int64)
        firsts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        counts = np.diff(np.append(firsts, len(ordered)))
        groups = ordered[firsts]
        places = np.repeat(following[groups].astype(np.int64) - firsts, counts) + np.arange(len(ordered))
        ids[places] = order + lo
        following[groups] += counts.astype(np.uint32)
    ids.flush()
    next_path.unlink()


def _chunks(rows: range) -> list[tuple[int, int]]:
    return [(lo, min(lo + CHUNK_NODES, rows.stop)) for lo in range(rows.start, rows.stop, CHUNK_NODES)]
