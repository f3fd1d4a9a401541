"""Small files are uploaded in batches that share their commits: no file of a batch knows the fate of another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from forebay.cache.write.records.store import Batch
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.write_lab import Lab

FILES = {f"f{index:02}": b"%d" % index for index in range(16)}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Nothing is uploaded before it is asked for, and so all of it at once."""
    lab = await Lab.start(tmp_path, MultipartBucket(), writeback_delay_s=3600.0)
    yield lab
    lab.side.state.validate()
    await lab.end()


def write_all(lab: Lab) -> None:
    for name, data in FILES.items():
        lab.write(name.encode(), data)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)


async def test_small_files_share_the_commits_of_their_uploads(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(lab)
    commits: list[Batch] = []
    commit = lab.side.records.commit

    def counted(batch: Batch) -> int | None:
        commits.append(batch)
        return commit(batch)

    monkeypatch.setattr(lab.side.records, "commit", counted)
    await lab.side.flush(timeout_s=60)
    assert lab.bucket.contents() == FILES
    assert lab.bucket.calls == {"put": len(FILES)}
    assert len(commits) <= 4


async def test_one_that_hangs_holds_up_no_other(lab: Lab) -> None:
    write_all(lab)
    lab.bucket.fault = lambda kind, key: Fault.HOLD if key == "f03" else None
    flushing = asyncio.create_task(lab.side.flush(timeout_s=60))
    await until(lambda: len(lab.side.state.dirty) == 1)
    assert lab.side.whereabouts(b"f03").state == "uploading"  # type: ignore[union-attr]
    lab.unlink(b"f05")  # of the same batch, and over
    await until(lambda: "f05" not in lab.bucket.objects)
    lab.bucket.released.set()
    await flushing
    assert lab.bucket.contents() == {name: data for name, data in FILES.items() if name != "f05"}


async def test_each_meets_its_own_fate(lab: Lab) -> None:
    write_all(lab)
    fates = {"f01": Fault.REFUSE, "f02": Fault.LOSE, "f03": Fault.HOLD, "f04": Fault.HOLD}
    lab.bucket.fault = lambda kind, key: fates.pop(key, None) if kind == "put" else None
    lab.bucket.write("f05", b"somebody else's")
    flushing = asyncio.create_task(lab.side.flush(timeout_s=60))
    await until(lambda: lab.bucket.calls["put"] >= len(FILES))
    lab.unlink(b"f03")
    lab.rename(b"f04", b"moved")
    lab.bucket.released.set()
    await flushing
    found = lab.bucket.contents()
    (conflict,) = [name for name in found if name.startswith("f05.conflict-")]
    expected = FILES | {"moved": FILES["f04"], conflict: FILES["f05"], "f05": b"somebody else's"}
    del expected["f03"], expected["f04"]
    assert found == expected
    assert lab.side.uploads.counts.conflicts == 1
    assert not lab.side.uploads.active
    assert not lab.side.uploads.busy_keys
    assert not lab.side.state.attempts


async def test_a_batch_that_was_sent_and_not_committed_is_found_out_and_not_sent_again(lab: Lab) -> None:
    write_all(lab)
    lab.bucket.fault = lambda kind, key: Fault.LOSE if kind == "put" else Fault.REFUSE
    flushing = asyncio.create_task(lab.side.flush(timeout_s=60))
    await until(lambda: len(lab.bucket.objects) == len(FILES))
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    await lab.crash()
    lab.bucket.fault = lambda kind, key: None
    again = await Lab.start(lab.folder, lab.bucket)
    assert len(again.side.state.attempts) == len(FILES)
    await again.side.flush(timeout_s=60)
    assert again.bucket.contents() == FILES
    assert again.bucket.calls["put"] == len(FILES)
    assert not again.side.state.attempts
    await again.end()


async def test_an_attempt_is_committed_before_its_file_is_sent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(lab)
    unannounced: list[str] = []
    keys_committed: set[bytes] = set()
    commit = lab.side.records.commit

    def watched(batch: Batch) -> int | None:
        revision = commit(batch)
        keys_committed.update(change.key for change in batch.changes)
        return revision

    def fault(kind: str, key: str) -> None:
        nonces = [attempt.nonce for attempt in lab.side.state.attempts.values() if attempt.key == key.encode()]
        if not any(b"a" + nonce.encode() in keys_committed for nonce in nonces):
            unannounced.append(key)

    monkeypatch.setattr(lab.side.records, "commit", watched)
    lab.bucket.fault = fault
    await lab.side.flush(timeout_s=60)
    assert lab.bucket.contents() == FILES
    assert unannounced == []
