"""Fixtures of real mounts, on both transports."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from forebay.fuse_mount.options import MountOptions
from forebay.tests.support.fuse import ServedMount, clear, need_fuse, served
from forebay.tests.support.static_view import MemoryCache, StaticView

MountIt = Callable[..., ServedMount]
Transport = Literal["lane", "pyfuse3"]


@pytest.fixture(params=["lane", "pyfuse3"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    need_fuse()
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    clear(path)


@pytest.fixture
def mount_it(mountpoint: Path, transport: Transport) -> Iterator[MountIt]:
    """A function that mounts a view (and a cache, by default of its contents) for the length of the test."""
    mounts: list[ServedMount] = []
    with contextlib.ExitStack() as stack:

        def mount_it(view: StaticView, cache: MemoryCache | None = None, **choices: Any) -> ServedMount:
            facts = {"facts": choices.pop("facts")} if "facts" in choices else {}
            options = MountOptions(**{"transport": transport, **choices})
            mounts.append(stack.enter_context(served(view, cache or MemoryCache(view), mountpoint, options, **facts)))
            return mounts[-1]

        yield mount_it
    for mounted in mounts:
        status = mounted.mount.status()
        assert "AssertionError" not in status.errors, "a promise to the view was broken, see the log"
        assert status.gauges["requests_waiting"] == status.gauges["open_directories"] == 0
