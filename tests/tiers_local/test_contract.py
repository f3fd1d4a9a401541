"""What `LocalTier` promises, one promise per test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.errors import ConfigError, TierFailed, TierFull
from forebay.tests.tiers_local.content import content_of, version_of
from forebay.tiers.local import FifoPolicy, LocalTier, TierOptions
from forebay.tiers.version import BLOCK_BYTES, CHUNK_BYTES, SMALL_BYTES, ObjectVersion

MIB = 1024 * 1024
OpenTier = Callable[..., LocalTier]


@pytest.fixture
def open_tier(tmp_path: Path) -> Iterator[OpenTier]:
    opened: list[LocalTier] = []

    def opener(capacity_bytes: int = 64 * MIB, **kwargs: object) -> LocalTier:
        options = TierOptions("ssd", tmp_path / "tier", capacity_bytes, free_space_ratio=0.0)
        tier = LocalTier.open(options, FifoPolicy(), **kwargs)  # type: ignore[arg-type]
        opened.append(tier)
        return tier

    yield opener
    for tier in opened:
        if not tier._gate.closed:
            tier.validate()
        tier.close()


def put(tier: LocalTier, version: ObjectVersion) -> bytes:
    data = content_of(version)
    tier.write(version, 0, data)
    return data


SIZES = [1, 100, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 110_000, SMALL_BYTES, SMALL_BYTES + 1,
         BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 9 * MIB + 12345]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read_whole_and_in_parts(open_tier: OpenTier, size: int) -> None:
    tier = open_tier()
    version = version_of("a", size)
    assert tier.read(version, 0, size) is None
    data = put(tier, version)
    assert tier.read(version, 0, size) == data
    assert tier.read(version, 0, size + 100) == data
    for offset in {0, 1, size // 3, size // 2, size - 1, max(size - CHUNK_BYTES, 0)}:
        for length in (1, 4096, CHUNK_BYTES, 3 * CHUNK_BYTES + 5, size):
            assert tier.read(version, offset, length) == data[offset : offset + length]
    assert tier.missing(version, 0, size) == []
    assert tier.cached_bytes(version) == size
    assert tier.present_blocks(version) == list(range(version.block_count))


@pytest.mark.parametrize("size", SIZES)
def test_a_restart_finds_everything(open_tier: OpenTier, size: int) -> None:
    tier = open_tier()
    version, other = version_of("a", size), version_of("a", size, "e2")
    data, other_data = put(tier, version), put(tier, other)
    used = tier.stats().used_bytes
    tier.close()
    tier = open_tier()
    assert tier.read(version, 0, size) == data
    assert tier.read(other, 0, size) == other_data
    assert tier.cached_bytes(version) == size
    assert tier.stats().used_bytes == used


def test_an_empty_object_is_always_there(open_tier: OpenTier) -> None:
    tier = open_tier()
    version = version_of("empty", 0)
    assert tier.read(version, 0, 10) == b""
    assert tier.missing(version, 0, 10) == []
    tier.write(version, 0, b"")
    assert tier.stats().entries == 0


def test_parts_of_a_large_object_come_and_are_asked_for(open_tier: OpenTier) -> None:
    tier = open_tier()
    version = version_of("a", 10 * MIB + 1000)
    data = content_of(version)
    pieces = [(0, CHUNK_BYTES), (2 * CHUNK_BYTES, CHUNK_BYTES), (BLOCK_BYTES - CHUNK_BYTES, 2 * CHUNK_BYTES)]
    for offset, length in pieces:
        tier.write(version, offset, data[offset : offset + length])
    assert tier.missing(version, 0, BLOCK_BYTES) == [
        (CHUNK_BYTES, CHUNK_BYTES),
        (3 * CHUNK_BYTES, BLOCK_BYTES - 4 * CHUNK_BYTES),
    ]
    assert tier.missing(version, 10 * MIB, 5000) == [(10 * MIB, 1000)]
    assert tier.read(version, 10, 100) == data[10:110]
    assert tier.read(version, CHUNK_BYTES - 10, 20) is None
    assert tier.read(version, BLOCK_BYTES - 10, 20) == data[BLOCK_BYTES - 10 : BLOCK_BYTES + 10]
    assert tier.cached_bytes(version) == 4 * CHUNK_BYTES
    assert tier.present_blocks(version) == []
    for offset, length in tier.missing(version, 0, version.size):
        tier.write(version, offset, data[offset : offset + length])
    assert tier.read(version, 0, version.size) == data
    assert tier.present_blocks(version) == [0, 1, 2]


@pytest.mark.parametrize("size", [4096, CHUNK_BYTES, MIB])
def test_what_is_done_meanwhile_is_done_once_and_only_for_what_is_here(open_tier: OpenTier, size: int) -> None:
    tier = open_tier()
    version = version_of("a", 9 * MIB)
    calls: list[int] = []

    def meanwhile() -> None:
        calls.append(1)

    assert tier.read(version, BLOCK_BYTES, size, meanwhile=meanwhile) is None
    assert calls == []
    data = put(tier, version)
    assert tier.read(version, BLOCK_BYTES, size, meanwhile=meanwhile) == data[BLOCK_BYTES : BLOCK_BYTES + size]
    assert calls == [1]


@pytest.mark.parametrize("size", [5000, 110_000, 9 * MIB])
def test_drop_frees_what_was_there(open_tier: OpenTier, size: int) -> None:
    tier = open_tier()
    version, other = version_of("a", size), version_of("b", size)
    put(tier, version)
    data = put(tier, other)
    used = tier.stats().used_bytes
    assert tier.drop(version) == size
    assert tier.drop(version) == 0
    assert tier.read(version, 0, size) is None
    assert tier.read(other, 0, size) == data
    assert tier.stats().used_bytes <= used - size // 4096 * 4096
    put(tier, version)
    assert tier.read(version, 0, size) == content_of(version)


@pytest.mark.parametrize("size", [3000, 110_000, 5 * MIB])
def test_a_full_tier_evicts_and_stays_below_its_capacity(open_tier: OpenTier, size: int) -> None:
    tier = open_tier(capacity_bytes=16 * MIB)
    count = 40 * MIB // max(size, 4096)
    versions = [version_of(f"k{i}", size) for i in range(count)]
    for version in versions:
        put(tier, version)
        assert tier.stats().used_bytes <= 16 * MIB
    stats = tier.stats()
    assert stats.evicted > 0
    assert stats.used_bytes >= 10 * MIB
    for version in versions:
        found = tier.read(version, 0, size)
        assert found is None or found == content_of(version)
    assert tier.read(versions[-1], 0, size) is not None
    assert stats.corrupt == 0


@pytest.mark.parametrize("size", [110_000, 5 * MIB])
def test_pinned_objects_are_not_evicted(open_tier: OpenTier, size: int) -> None:
    pins: set[bytes] = set()
    tier = open_tier(capacity_bytes=16 * MIB, pinned=pins.__contains__)
    pinned = version_of("pinned", size)
    pins.add(pinned.digest)
    data = put(tier, pinned)
    for i in range(30 * MIB // size):
        put(tier, version_of(f"k{i}", size))
    assert tier.read(pinned, 0, size) == data
    more = [version_of(f"more{i}", size) for i in range(30 * MIB // size)]
    pins.update(version.digest for version in more)
    pins.update(entry.digest for entry in tier.entries())
    refused = 0
    for version in more:
        try:
            put(tier, version)
        except TierFull:
            refused += 1
    assert refused
    assert tier.read(pinned, 0, size) == data


@pytest.mark.parametrize("size", [20_000, 110_000, 5 * MIB])
def test_the_evicted_is_handed_over_whole_and_verified(open_tier: OpenTier, size: int) -> None:
    seen: dict[bytes, int] = {}

    def on_evict(version: ObjectVersion, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert data == content_of(version)[offset : offset + len(data)]
        seen[version.digest] = seen.get(version.digest, 0) + len(data)

    tier = open_tier(capacity_bytes=16 * MIB, on_evict=on_evict)
    versions = [version_of(f"k{i}", size) for i in range(40 * MIB // size)]
    for version in versions:
        put(tier, version)
    assert seen
    for version in versions:
        assert tier.cached_bytes(version) + seen.get(version.digest, 0) == size


def test_writes_that_cannot_be_right_are_refused(open_tier: OpenTier) -> None:
    tier = open_tier()
    small, large = version_of("s", 1000), version_of("l", 3 * MIB)
    for version, offset, size in [
        (small, 0, 999), (small, 1, 999), (large, 1, CHUNK_BYTES), (large, 0, CHUNK_BYTES + 1),
        (large, 3 * MIB - CHUNK_BYTES, 2 * CHUNK_BYTES), (large, -CHUNK_BYTES, CHUNK_BYTES),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="bytes"):
            tier.write(version, offset, bytes(size))


def test_a_closed_tier_has_nothing_and_takes_nothing(open_tier: OpenTier) -> None:
    tier = open_tier()
    versions = [version_of("s", 1000), version_of("l", 3 * MIB)]
    for version in versions:
        put(tier, version)
    tier.close()
    for version in versions:
        assert tier.read(version, 0, 10) is None
        assert tier.missing(version, 0, version.size) == [(0, version.size)]
        with pytest.raises(TierFailed):
            tier.write(version, 0, content_of(version))


def test_entries_are_listed(open_tier: OpenTier) -> None:
    tier = open_tier()
    small, large = version_of("s", 1000), version_of("l", 6 * MIB)
    put(tier, small)
    put(tier, large)
    listed = sorted((entry.digest, entry.offset, entry.size_bytes) for entry in tier.entries())
    assert listed == sorted(
        [(small.digest, 0, 1000), (large.digest, 0, BLOCK_BYTES), (large.digest, BLOCK_BYTES, 2 * MIB)]
    )


def test_nonsense_options_are_refused(tmp_path: Path) -> None:
    for change in ({"capacity_bytes": 1}, {"free_space_ratio": 1.0}, {"low_watermark": 0.0}, {"max_open_files": 1}):
        values: dict[str, object] = {"name": "ram", "folder": tmp_path, "capacity_bytes": 64 * MIB, **change}
        with pytest.raises(ConfigError):
            TierOptions(**values)  # type: ignore[arg-type]
