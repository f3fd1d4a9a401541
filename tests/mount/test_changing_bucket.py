"""A bucket that changes under a mount: new bytes after the TTL, old or none for who has the file open, never a mix."""

import errno
import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine, wait_until

MIB = 1024 * 1024
TTL = ("--metadata-ttl", "500ms")


def versioned(number: int, size: int) -> bytes:
    """Content in which every 16 bytes name their version and place: a mix of two versions cannot go unnoticed."""
    row = b"%07d" % number
    return b"".join(row + b"%08d\n" % position for position in range(0, size, 16))[:size]


def version_in(data: bytes) -> int:
    """The one version that these bytes are of; fails for a mix."""
    rows = {data[position : position + 7] for position in range(0, len(data) // 16 * 16, 16)}
    assert len(rows) == 1, f"bytes of {sorted(rows)}"
    number = int(rows.pop())
    assert data == versioned(number, len(data))
    return number


def read_or_stale(place: Path | io.FileIO) -> bytes:
    """All bytes, or none if the version is not to be had any more."""
    try:
        return place.read_bytes() if isinstance(place, Path) else place.read()
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.EIO):
            raise
        return b""


def test_new_bytes_after_the_ttl(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("f", versioned(1, 200_000))
    bucket.put("gone", b"x")
    where = forebay.mount(bucket.url, *TTL)
    assert read_tree(where) == bucket.truth
    bucket.put("f", versioned(2, 300_000))
    bucket.put("new", b"new")
    bucket.delete("gone")
    wait_until(lambda: sorted(os.listdir(where)) == ["f", "new"], "the new listing")
    wait_until(lambda: (where / "f").stat().st_size == 300_000, "the new version")
    assert read_tree(where) == bucket.truth


def test_indefinite_ttl_asks_once(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("f", b"one")
    where = forebay.mount(bucket.url, "--metadata-ttl", "indefinite")
    assert read_tree(where) == {"f": b"one"}
    bucket.put("f", b"two")
    bucket.proxy.forget()
    assert read_tree(where) == {"f": b"one"}
    assert bucket.proxy.requests == []


def test_open_file_is_never_a_mix(forebay: CommandLine, bucket: Bucket) -> None:
    size = 12 * MIB
    bucket.put("f", versioned(1, size))
    where = forebay.mount(bucket.url, *TTL)
    with (where / "f").open("rb", buffering=0) as file:
        head = file.read(65536)
        assert version_in(head) == 1
        bucket.put("f", versioned(2, size))
        wait_until(lambda: read_or_stale(where / "f")[:7] == b"0000002", "the new version")
        rest = read_or_stale(file)
        assert rest == b"" or version_in(head + rest) == 1


def test_readers_while_it_is_overwritten_again_and_again(forebay: CommandLine, bucket: Bucket) -> None:
    size = 3 * MIB + 160
    bucket.put("f", versioned(0, size))
    where = forebay.mount(bucket.url, "--metadata-ttl", "50ms")
    stop = threading.Event()
    seen: set[int] = set()
    failures: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(version_in((where / "f").read_bytes()))
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.EIO):
                    failures.append(error)
            except AssertionError as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 15):
            bucket.put("f", versioned(number, size))
        wait_until(lambda: 14 in seen or failures, "the last version to be read")
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not failures


# SeaweedFS takes no keys that could not be paths, or rewrites them; tests/namespace has those.
ODD_KEYS = {
    "plain": b"1",
    "with space": b"2",
    "ünïcödé/日本語": b"3",
    "a%2Fb": b"4",
    "new\nline": b"5",
    "quote'\"s": b"6",
    "#hash?query&": b"7",
    "deep/" * 30 + "x": b"8",
    "n" * 255: b"9",
    "dir/": b"",
    "dir/inside": b"10",
}


def test_odd_keys(forebay: CommandLine, bucket: Bucket) -> None:
    for key, data in {**ODD_KEYS, "both": b"file", "both/below": b"folder wins"}.items():
        bucket.put(key, data)
    where = forebay.mount(bucket.url)
    shown = read_tree(where)
    expected = {key: data for key, data in ODD_KEYS.items() if not key.endswith("/")}
    assert {key: shown.get(key) for key in expected} == expected
    assert shown["both/below"] == b"folder wins"
    assert not any(".." in Path(key).parts for key in shown)
    # Beside a folder of the same name a file cannot be shown, and that is said.
    assert forebay.status(where)["view"]["skipped"]
    assert forebay.json("prefetch", where)["complete"]


class Moves:
    """Random changes of a bucket and random looks at the mount, and what may be seen."""

    def __init__(self, forebay: CommandLine, bucket: Bucket) -> None:
        self.bucket = bucket
        self.where = forebay.mount(bucket.url, "--metadata-ttl", "0s", "--ram-size", "16MiB", "--cache-size", "64MiB")
        self.versions = 0

    def put(self, key: str, size: int) -> None:
        self.versions += 1
        self.bucket.put(key, content(self.versions, size))

    def check(self, key: str, offset: int, size: int) -> None:
        expected = self.bucket.truth.get(key)
        path = self.where / key
        if expected is None:
            assert not path.is_file()
            return
        assert path.stat().st_size == len(expected)
        with path.open("rb") as file:
            file.seek(offset)
            assert file.read(size) == expected[offset : offset + size]


keys = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/f"])
moves = st.one_of(
    st.tuples(st.just("put"), keys, st.sampled_from([0, 1, 70_000, MIB, MIB + 1, 5 * MIB])),
    st.tuples(st.just("delete"), keys, st.just(0)),
    st.tuples(st.just("read"), keys, st.integers(0, 5 * MIB)),
    st.tuples(st.just("list"), st.just(""), st.just(0)),
)


@pytest.fixture
def world(forebay: CommandLine, bucket: Bucket) -> Moves:
    return Moves(forebay, bucket)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=st.lists(moves, max_size=25))
def test_random_histories(world: Moves, history: list[tuple[str, str, int]]) -> None:
    """With a TTL of zero a mount shows each change at once, whatever was cached before."""
    for move, key, number in history:
        if move == "put":
            world.put(key, number)
        elif move == "delete":
            world.bucket.delete(key)
        elif move == "read":
            world.check(key, number, 300_000)
        else:
            assert read_tree(world.where) == world.bucket.truth
    assert read_tree(world.where) == world.bucket.truth
