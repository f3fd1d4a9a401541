"""Random reads, listings and cache drops on a real mount, against the truth; and what they counted is given back."""

import contextlib
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.tests.fuse.conftest import MountIt
from forebay.tests.support.fuse import until
from forebay.tests.support.reading import WAYS, Read
from forebay.tests.support.static_view import MemoryCache, StaticView

SIZES = [0, 1, 4095, 4096, 4097, 131_072, 1_048_577, 3_000_000]
CONTENTS = {f"folder-{size % 3}/file-{size}".encode(): random.Random(size).randbytes(size) for size in SIZES}


steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(CONTENTS)),
        st.integers(0, 3_100_000),
        st.one_of(st.integers(0, 10_000), st.integers(0, 2_000_000)),
        st.sampled_from(WAYS),
        st.sampled_from(["warm", "cold", "drop", "list"]),
    ),
    max_size=15,
)


def test_random_reads_are_the_truth(mount_it: MountIt) -> None:
    view = StaticView(CONTENTS)
    cache = MemoryCache(view)
    root = mount_it(view, cache).path
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as reader:
        check_reads(view, cache, root, reader)
    cache.cold = False
    until(lambda: forgotten(view), "forgetting every inode")
    assert set(cache.forgotten) <= {ino for ino in view._items if view._items[ino].content is not None}


def check_reads(view: StaticView, cache: MemoryCache, root: Path, reader: ProcessPoolExecutor) -> None:
    @settings(max_examples=25, deadline=None)
    @given(steps)
    def check(chosen: list[tuple[bytes, int, int, Read, str]]) -> None:
        for name, offset, size, read, change in chosen:
            cache.cold = change == "cold"
            path = root / os.fsdecode(name)
            if change == "drop":
                drop_page_cache(path)
            if change == "list":
                assert {os.fsencode(entry) for entry in os.listdir(path.parent)} == {
                    key.split(b"/")[1] for key in CONTENTS if key.startswith(name.split(b"/")[0])
                }
            offset %= len(CONTENTS[name]) + 10
            assert reader.submit(read, str(path), offset, size).result(180) == CONTENTS[name][offset : offset + size]

    check()


def drop_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def forgotten(view: StaticView) -> bool:
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("2")
    return not view.lookups
