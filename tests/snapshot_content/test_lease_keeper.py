"""A lease lives as long as its holder, whatever the metadata store does meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.errors import MetadataUnavailable
from forebay.snapshots import open_meta
from forebay.snapshots.lease_keeper import keep_lease
from forebay.snapshots.metastore import MetaStore

COMMIT = b"\x01" * 32


@pytest.fixture
def meta(tmp_path: Path) -> Iterator[MetaStore]:
    store = open_meta(f"sqlite:///{tmp_path}/meta.db")
    yield store
    store.close()


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the condition is in a database)
            await asyncio.sleep(0.01)


async def test_a_lease_names_its_holder_is_renewed_and_ends_with_it(meta: MetaStore) -> None:
    async with keep_lease(
        meta, dataset="photos", commit=COMMIT, purpose="mount", what="mount of /data", owner="ann", ttl_s=3
    ) as lease:
        (held,) = meta.leases()
        assert (held.id, held.owner, held.what, held.commit) == (lease.id, "ann", "mount of /data", COMMIT)
        assert held.pid > 0
        await until(lambda: [one.expires_ms for one in meta.leases()] > [lease.expires_ms])
    assert meta.leases() == []


async def test_an_expired_lease_is_taken_anew_and_an_outage_survived(
    meta: MetaStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renew, answers = meta.renew_lease, iter(["away", "away", "expired"])

    def flaky(lease_id: str, ttl_s: float) -> bool:
        match next(answers, None):
            case "away":
                raise MetadataUnavailable("mongodb://m does not answer")
            case "expired":
                meta.drop_lease(lease_id)
        return renew(lease_id, ttl_s)

    monkeypatch.setattr(meta, "renew_lease", flaky)
    with caplog.at_level(logging.WARNING):
        async with keep_lease(meta, dataset="d", commit=COMMIT, purpose="mount", what="mount of /m", ttl_s=0.3):
            await until(lambda: any("taken anew" in record.getMessage() for record in caplog.records))
            await until(lambda: len(meta.leases()) == 1)
    assert sum("could not be renewed" in record.getMessage() for record in caplog.records) == 1


async def test_leaving_during_an_outage_leaves_the_lease_to_expire(
    meta: MetaStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(lease_id: str) -> None:
        raise MetadataUnavailable("mongodb://m does not answer")

    async with keep_lease(meta, dataset="d", commit=COMMIT, purpose="job", what="job 7"):
        monkeypatch.setattr(meta, "drop_lease", away)
    assert "left to expire" in caplog.text


async def test_a_lease_that_cannot_be_had_is_an_error(meta: MetaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(lease: object, ttl_s: float) -> None:
        raise MetadataUnavailable("mongodb://m does not answer")

    monkeypatch.setattr(meta, "put_lease", away)
    with pytest.raises(MetadataUnavailable):
        async with keep_lease(meta, dataset="d", commit=COMMIT, purpose="job", what="job 7"):
            raise AssertionError("entered without a lease")
