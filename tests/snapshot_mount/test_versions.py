"""Other versions in the process that holds the cache: opened once, bounded, never closed under somebody who reads."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from forebay.config import Settings
from forebay.daemon import opening, versions
from forebay.daemon.sources import SourceName, name_of
from forebay.daemon.versions import Versions
from forebay.errors import RefNotFound, UsageError
from forebay.tests.support.memory_bucket import MemoryBucket
from forebay.tiers.version import ObjectVersion

SETTINGS = Settings(by_label="class")


@dataclass
class FakeSource:
    """What `Versions` needs of a source."""

    name: SourceName
    stores: dict[str, Any] = field(default_factory=dict)
    is_closed: bool = False

    async def close(self) -> None:
        self.is_closed = True


class Opened:
    """Stands for `opening.open_source`, and remembers what it opened."""

    def __init__(self) -> None:
        self.sources: list[FakeSource] = []

    async def __call__(self, text: str, settings: Settings, *, what: str) -> FakeSource:
        assert settings.by_label is None
        assert what == f"{text} through the mount at /m"
        if text.endswith("@v99"):
            raise RefNotFound("pets has no version v99")
        bucket = MemoryBucket(f"s3://{text.partition('@')[2]}")
        self.sources.append(FakeSource(name_of(text, settings), {bucket.id: bucket}))
        return self.sources[-1]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    made = Opened()
    monkeypatch.setattr(opening, "open_source", made)
    monkeypatch.setattr(versions, "MOST_OPEN", 2)
    return made


@pytest.fixture
def main_source() -> FakeSource:
    return FakeSource(name_of("pets@v1", SETTINGS), {"s3://v1": MemoryBucket("s3://v1")})


@pytest.fixture
def beside(main_source: FakeSource) -> Versions:
    return Versions(main_source, SETTINGS, "the mount at /m")  # type: ignore[arg-type]


async def test_a_version_is_opened_once_and_closed_with_the_process(
    beside: Versions, main_source: FakeSource, opened: Opened
) -> None:
    for _ in range(2):
        async with beside.at("pets@v2") as source:
            assert source.name.text == "pets@v2"
    for name in (None, "pets@v1"):
        async with beside.at(name) as source:
            assert source.name is main_source.name
    assert [source.is_closed for source in opened.sources] == [False]
    await beside.close()
    assert [source.is_closed for source in (*opened.sources, main_source)] == [True, False]


async def test_the_one_used_longest_ago_makes_room_but_never_one_in_use(beside: Versions, opened: Opened) -> None:
    async with contextlib.AsyncExitStack() as reading:
        await reading.enter_async_context(beside.at("pets@v2"))
        for name in ("pets@v3", "pets@v4"):
            async with beside.at(name):
                pass
        assert [source.is_closed for source in opened.sources] == [False, True, False]
        await reading.enter_async_context(beside.at("pets@v4"))
        with pytest.raises(UsageError, match="2 other versions are in use here; try again later"):
            async with beside.at("pets@v5"):
                pass
    await beside.close()


async def test_another_cache_is_refused_and_a_failure_leaves_nothing_open(beside: Versions, opened: Opened) -> None:
    with pytest.raises(UsageError, match="holds the cache of pets@v1, not that of cars@v1"):
        async with beside.at("cars@v1"):
            pass
    with pytest.raises(RefNotFound):
        async with beside.at("pets@v99"):
            pass
    assert opened.sources == []


async def test_stores_of_all_open_versions_are_found(beside: Versions, opened: Opened) -> None:
    async with beside.at("pets@v2"):
        for name in ("s3://v1", "s3://v2"):
            assert beside.store_of(ObjectVersion(name, "k", "e", 1)).id == name
        with pytest.raises(UsageError, match="s3://v3 is no store of pets@v1"):
            beside.store_of(ObjectVersion("s3://v3", "k", "e", 1))
    await beside.close()
