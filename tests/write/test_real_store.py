"""The write side on a real S3 server: killed at random moments, and with a network that loses answers."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from forebay.cache.write.object_metadata import attributes_of
from forebay.cache.write.operations import Attributes
from forebay.cache.write.options import WriteOptions
from forebay.cache.write.records import SqliteRecords
from forebay.cache.write.write_side import WriteSide
from forebay.errors import Incomplete
from forebay.tests.support.fault_proxy import Fault, fault_proxy
from forebay.tests.support.servers import S3Server
from forebay.tests.support.write_crash import after_kill, brief, everything, in_bucket, nothing_is_doomed, run_and_kill
from forebay.tests.support.write_worker import FOLDER, Model, content, open_side
from forebay.tiers.durable import FolderTier
from forebay.tiers.stores import StoreOptions
from forebay.tiers.stores.s3 import S3Store

MIB = 1024 * 1024
KILLS = int(os.environ.get("FOREBAY_KILLS", "8"))
SEED = int(os.environ.get("FOREBAY_SEED", "7"))


@pytest.fixture(autouse=True)
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(600 + 30 * KILLS)
async def test_what_was_acked_survives_kill_9_and_reaches_the_bucket(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket("killed")
    rng = random.Random(SEED)
    model: Model = {}
    killed_inside = 0
    for turn in range(KILLS):
        begun, acked = await asyncio.to_thread(run_and_kill, tmp_path, s3.endpoint_url, bucket, SEED * 1000 + turn, rng)
        side = open_side(tmp_path, s3.endpoint_url, bucket)
        recovered = await side.start()
        assert recovered.missing == ()
        killed_inside += len(begun) > acked
        model = after_kill(model, await everything(side), begun, acked)
        side.state.validate()
        if turn % 2 or turn == KILLS - 1:
            await side.flush(timeout_s=180)
            await nothing_is_doomed(side)
            assert brief(in_bucket(s3, bucket)) == brief(model), f"seed {SEED}, turn {turn}"
            assert await side.store.list_uploads("") == []
            nodes = side.state.by_id.values()
            assert set(side.tier.names()) == {n.data for n in nodes if n.data and not n.inline}
        await side.close()
        await side.store.close()
    assert killed_inside, "no kill hit an operation: this proved nothing"


async def test_lost_answers_of_a_real_server_are_found_out(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.new_bucket("lost")
    with fault_proxy(s3.endpoint_url) as proxy:
        store = S3Store(bucket, StoreOptions(endpoint_url=proxy.url, timeout_s=20.0))
        side = WriteSide(
            tier=FolderTier.at(tmp_path), records=SqliteRecords(tmp_path / "r.db"), store=store,
            options=WriteOptions(writeback_delay_s=0.0, part_bytes=5 * MIB, retry_first_s=0.05),
        )  # fmt: skip
        async with side:
            proxy.script = [
                Fault.lose_answer(only="PUT"),
                Fault.lose_answer(only="POST"),
                Fault.lose_answer(only="PUT"),
            ]
            expected: Model = {"small": content(1, 1000), "large": content(2, 12 * MIB)}
            for name, data in expected.items():
                assert data is not None
                file = side.create(name.encode(), Attributes(0o640, 3, 4))
                file.write(0, data)
                file.release()
            await side.flush(timeout_s=180)
            assert brief(in_bucket(s3, bucket)) == brief(expected)
            assert side.uploads.counts.conflicts == 0
            side.rename(b"large", b"moved")
            side.set_attributes(b"small", mode=0o600)
            proxy.script = [
                Fault.lose_answer(only="PUT"),
                Fault.lose_answer(only="PUT"),
                Fault.lose_answer(only="DELETE"),
            ]
            await side.flush(timeout_s=180)
            moved = {"small": expected["small"], "moved": expected["large"]}
            assert brief(in_bucket(s3, bucket)) == brief(moved)
            head = await store.head("small")
            assert head is not None
            assert attributes_of(head.metadata).st_mode == 0o100600
            assert await store.list_uploads("") == []
        await store.close()


async def test_the_real_server_checks_conditions(s3: S3Server, tmp_path: Path) -> None:
    """What `conflict` stands on: a change from outside is detected for small and large files."""
    bucket = s3.new_bucket("conflict")
    store = S3Store(bucket, StoreOptions(endpoint_url=s3.endpoint_url))
    side = WriteSide(
        tier=FolderTier.at(tmp_path), records=SqliteRecords(tmp_path / "r.db"), store=store,
        options=WriteOptions(writeback_delay_s=0.0, part_bytes=5 * MIB),
    )  # fmt: skip
    async with side:
        for name, size in (("small", 1000), ("large", 12 * MIB)):
            file = side.create(name.encode(), Attributes(0o644, 0, 0))
            file.write(0, content(1, size))
            file.release()
        await side.flush(timeout_s=180)
        for name in ("small", "large"):
            s3.client().put_object(Bucket=bucket, Key=name, Body=b"theirs")
            file = side.open(name.encode(), writable=True, truncate=True)
            file.write(0, content(2, 1000 if name == "small" else 12 * MIB))
            file.release()
        await side.flush(timeout_s=180)
        found = in_bucket(s3, bucket)
        assert found.pop("small") == found.pop("large") == b"theirs"
        assert sorted(len(data or b"") for data in found.values()) == [1000, 12 * MIB]
    await store.close()


async def test_a_store_that_is_a_file_system_inside_is_no_obstacle(s3: S3Server, tmp_path: Path) -> None:
    """SeaweedFS answers for a folder that only has keys below it, and keeps one for a while after the last key went."""
    bucket = s3.new_bucket("folders")
    client = s3.client()
    store = S3Store(bucket, StoreOptions(endpoint_url=s3.endpoint_url))
    side = WriteSide(
        tier=FolderTier.at(tmp_path), records=SqliteRecords(tmp_path / "r.db"), store=store,
        options=WriteOptions(writeback_delay_s=0.0, retry_first_s=0.05, retry_max_s=0.2),
    )  # fmt: skip
    async with side:
        # A marker where the store says that there is one, though only a key below it makes it seem so.
        client.put_object(Bucket=bucket, Key="implicit/theirs", Body=b"x")
        assert await store.head("implicit/") is not None
        side.mkdir(b"implicit", Attributes(0o755, 0, 0))
        # A file where a folder stood: the store refuses it, though it has neither an object nor a key below.
        client.put_object(Bucket=bucket, Key="was-a-folder/f", Body=b"x")
        client.delete_object(Bucket=bucket, Key="was-a-folder/f")
        assert await store.head("was-a-folder") is None
        assert await store.head("was-a-folder/") is not None
        # And with folders in it that nothing is in any more.
        for key in ("was-a-tree/a/b/f", "was-a-tree/a/f", "was-a-tree/c/f"):
            client.put_object(Bucket=bucket, Key=key, Body=b"x")
            client.delete_object(Bucket=bucket, Key=key)
        # The same where somebody else's key is below: the file waits, and their key stays.
        client.put_object(Bucket=bucket, Key="is-a-folder/f", Body=b"theirs")
        for name in (b"was-a-folder", b"was-a-tree", b"is-a-folder"):
            file = side.create(name, Attributes(0o644, 0, 0))
            file.write(0, b"a file")
            file.release()
        for name in (b"was-a-folder", b"was-a-tree"):
            await side.flush(name, timeout_s=60)
        client.delete_object(Bucket=bucket, Key="implicit/theirs")
        with pytest.raises(Incomplete, match=r"is-a-folder"):
            await side.flush(timeout_s=1.0)
        expected: Model = {"implicit": FOLDER, "was-a-folder": b"a file", "was-a-tree": b"a file"}
        assert brief(in_bucket(s3, bucket)) == brief({**expected, "is-a-folder": FOLDER, "is-a-folder/f": b"theirs"})
        client.delete_object(Bucket=bucket, Key="is-a-folder/f")
        await side.flush(timeout_s=120)
        assert brief(in_bucket(s3, bucket)) == brief({**expected, "is-a-folder": b"a file"})
        assert side.uploads.counts.conflicts == 0
    await store.close()
