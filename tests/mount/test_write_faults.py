"""Faults of the store and of the disk below a writing mount: nothing acked is lost, and writers hear what is wrong."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine, wait_until
from forebay.tests.support.fault_proxy import Fault
from forebay.tests.support.servers import unavailable

MIB = 1024 * 1024


def in_bucket(bucket: Bucket) -> dict[str, bytes]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    keys = [item["Key"] for item in listed if not item["Key"].endswith("/")]
    return {key: bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read() for key in keys}


def nothing_is_pending(bucket: Bucket) -> bool:
    return not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Fault.answer(503, "SlowDown", only="PUT")] * 6, id="503"),
        pytest.param([Fault.reset(only="PUT")] * 6, id="cut"),
        # The third part of the large file, again and again, then its completion: applied, and the answer lost.
        pytest.param([Fault.delay(0.0, only="PUT")] * 2 + [Fault.reset(only="PUT")] * 2, id="nth-part"),
        pytest.param([Fault.delay(0.0, only="POST"), Fault.lose_answer(only="POST")], id="completion-lost"),
        pytest.param([Fault.hang(only="PUT")] * 2, id="hang"),
    ],
)
def test_faults_of_the_store_delay_and_lose_nothing(forebay: CommandLine, bucket: Bucket, script: list[Fault]) -> None:
    where = forebay.mount(bucket.url, "--writeback-delay", "0s", "--io-timeout", "4s")
    expected = {"large": content(1, 50 * MIB), "small": content(2, 1000)}
    bucket.proxy.script = list(script)
    for name, data in expected.items():
        (where / name).write_bytes(data)
    forebay.ok("flush", where, "--timeout", "3m")
    assert bucket.proxy.script == [], "the faults did not all happen"
    assert in_bucket(bucket) == expected
    assert read_tree(where) == expected
    assert nothing_is_pending(bucket)


def test_writers_go_on_while_the_store_refuses_connections(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.mount(bucket.url, "--writeback-delay", "0s")
    (where / "d").mkdir()
    forebay.ok("flush", where, "--timeout", "2m")
    bucket.proxy.refuse()
    (where / "d" / "tmp").write_bytes(content(1, 20 * MIB))
    os.rename(where / "d" / "tmp", where / "d" / "f")
    forebay.kill(where)
    bucket.proxy.heal()
    forebay.ok("mount", bucket.url, where)
    assert read_tree(where) == {"d/f": content(1, 20 * MIB)}
    forebay.ok("flush", where, "--timeout", "2m")
    assert in_bucket(bucket) == {"d/f": content(1, 20 * MIB)}


@pytest.fixture
def small_tier(tmp_path: Path) -> Iterator[Path]:
    """A write tier on a disk of 32 MiB."""
    if os.geteuid() != 0:
        unavailable("mounting a small tmpfs needs root")
    folder = tmp_path / "tier"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_write_tier_fails_the_writer_only(forebay: CommandLine, bucket: Bucket, small_tier: Path) -> None:
    bucket.proxy.fault = Fault.answer(503, only="PUT")
    where = forebay.mount(
        bucket.url, "--write-tier", str(small_tier), "--dirty-wait", "1s", "--write-cache-size", "8MiB"
    )
    expected = {"kept": content(1, 12 * MIB)}
    (where / "kept").write_bytes(expected["kept"])
    with pytest.raises(OSError) as caught:
        (where / "too-much").write_bytes(content(2, 40 * MIB))
    assert caught.value.errno == errno.ENOSPC
    (where / "too-much").unlink()
    (where / "small").write_bytes(b"small")  # there is room again
    expected["small"] = b"small"
    assert read_tree(where) == expected
    bucket.proxy.heal()
    forebay.ok("writeback", "retry", where)
    forebay.ok("flush", where, "--timeout", "2m")
    for turn in range(2):  # what is in the bucket makes room
        expected[f"more{turn}"] = content(turn, 12 * MIB)
        wait_until(lambda: _written(where / f"more{turn}", expected[f"more{turn}"]), "room")  # noqa: B023
        forebay.ok("flush", where, "--timeout", "2m")
    assert in_bucket(bucket) == expected
    assert read_tree(where) == expected


def _written(path: Path, data: bytes) -> bool:
    try:
        path.write_bytes(data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def test_a_quota_of_dirty_bytes_is_enospc_after_the_wait(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.proxy.fault = Fault.answer(503, only="PUT")
    where = forebay.mount(bucket.url, "--max-dirty-size", "4MiB", "--dirty-wait", "1s")
    (where / "f").write_bytes(content(1, 3 * MIB))
    with pytest.raises(OSError) as caught:
        (where / "g").write_bytes(content(2, 3 * MIB))
    assert caught.value.errno == errno.ENOSPC
    bucket.proxy.heal()
    forebay.ok("writeback", "retry", where)
    forebay.ok("flush", where, "--timeout", "2m")
    (where / "g").write_bytes(content(2, 3 * MIB))
    forebay.ok("flush", where, "--timeout", "2m")
    assert in_bucket(bucket) == {"f": content(1, 3 * MIB), "g": content(2, 3 * MIB)}


@pytest.mark.parametrize("policy", ["keep-both", "overwrite"])
def test_objects_changed_by_others_while_dirty(forebay: CommandLine, bucket: Bucket, policy: str) -> None:
    sizes = {"small": 1000, "large": 20 * MIB, "renamed": 2000, "removed": 3000, "vanished": 4000}
    for index, (name, size) in enumerate(sizes.items()):
        bucket.put(name, content(index, size))
    where = forebay.mount(bucket.url, "--writeback-delay", "1h", "--on-conflict", policy)
    ours = {name: content(100 + index, size) for index, (name, size) in enumerate(sizes.items())}
    assert len(os.listdir(where)) == 5
    for name in ("small", "large", "vanished"):
        (where / name).write_bytes(ours[name])
    os.rename(where / "renamed", where / "new-name")
    (where / "removed").unlink()
    theirs = {name: b"theirs: " + name.encode() for name in ("small", "large", "renamed", "removed")}
    for name, data in theirs.items():
        bucket.put(name, data)
    bucket.delete("vanished")
    forebay.ok("flush", where, "--timeout", "2m")
    found = in_bucket(bucket)
    assert found.pop("vanished") == ours["vanished"], "nobody's object is overwritten by it"
    assert found.pop("removed") == theirs["removed"], "what was written anew is not ours to delete"
    for name in ("small", "large"):
        copies = [key for key in found if key.startswith(f"{name}.conflict-")]
        if policy == "overwrite":
            assert found.pop(name) == ours[name]
            assert copies == []
        else:
            assert found.pop(name) == theirs[name]
            assert [found.pop(key) for key in copies] == [ours[name]]
    # Only its name was changed here, and its content there: theirs is under the new name, and nothing is lost.
    assert theirs["renamed"] in found.values()
    assert forebay.status(where)["write"]["counts"]["conflicts"] >= 2
    assert nothing_is_pending(bucket)
