"""A mount serves what the bucket holds, fetches each byte once, and forgets nothing at a restart."""

import errno
import json
import os
import signal
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forebay.daemon import metrics
from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine, process_is_alive, wait_until

MIB = 1024 * 1024


def fill(bucket: Bucket) -> None:
    """Small and large objects, some in folders."""
    for number in range(30):
        bucket.put(f"small/{number % 3}/{number}.bin", content(number, 1000 + 7919 * number))
    bucket.put("empty", b"")
    bucket.put("large.bin", content(100, 9 * MIB + 12345))
    bucket.put("folder/edge.bin", content(101, 4 * MIB))


def test_mount_shows_the_bucket(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url)
    assert read_tree(where) == bucket.truth
    bucket.proxy.forget()
    assert read_tree(where) == bucket.truth
    assert bucket.fetches() == 0
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {where} " in line)
    assert f"fuse.forebay {bucket.url} " in line
    forebay.ok("umount", where)
    assert list(where.iterdir()) == []
    assert forebay.pids() == []


def test_mount_of_a_prefix(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(f"{bucket.url}/small")
    expected = {key.removeprefix("small/"): data for key, data in bucket.truth.items() if key.startswith("small/")}
    assert read_tree(where) == expected


def test_mount_of_a_folder(forebay: CommandLine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "x").write_bytes(content(1, 3 * MIB))
    (source / "y").write_bytes(b"y")
    where = forebay.mount(source.as_uri())
    assert read_tree(where) == {"a/x": content(1, 3 * MIB), "y": b"y"}


def test_two_buckets_side_by_side(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    fill(bucket)
    other = tmp_path / "other"
    other.mkdir()
    (other / "f").write_bytes(b"other")
    first, second = forebay.mount(bucket.url), forebay.mount(other.as_uri())
    assert read_tree(second) == {"f": b"other"}
    assert read_tree(first) == bucket.truth


def test_clean_restart_fetches_nothing_again(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url)
    assert read_tree(where) == bucket.truth
    forebay.ok("umount", where)
    bucket.proxy.forget()
    assert read_tree(forebay.mount(bucket.url)) == bucket.truth
    assert bucket.fetches() == 0


def test_killed_server_is_taken_over_and_little_fetched_again(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url)
    assert read_tree(where) == bucket.truth
    # Tier writes follow the answers; once the next read comes from a tier, they are in.
    wait_until(lambda: forebay.status(where)["cache"]["fills_in_flight"] == 0, "fills to be kept")
    forebay.kill(where)
    with pytest.raises(OSError) as caught:
        os.listdir(where)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    dead = forebay("info", where)
    assert dead.returncode == 32
    assert "died" in dead.stderr
    assert forebay.status(where)["state"] == "dead"
    bucket.proxy.forget()
    forebay.ok("mount", bucket.url, where)
    assert read_tree(where) == bucket.truth
    assert bucket.fetches() == 0


def test_umount_of_a_dead_mount(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.mount(bucket.url)
    forebay.kill(where)
    forebay.ok("umount", where)
    assert not os.path.ismount(where)
    assert forebay("umount", where).returncode == 31


def test_one_fetch_for_sixteen_readers(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("shared.bin", content(5, 600_000))
    where = forebay.mount(bucket.url)
    bucket.proxy.forget()
    start = threading.Barrier(16)

    def read(_: int) -> bytes:
        start.wait()
        return (where / "shared.bin").read_bytes()

    with ThreadPoolExecutor(16) as readers:
        assert set(readers.map(read, range(16))) == {bucket.truth["shared.bin"]}
    assert bucket.proxy.count("GET", key="shared.bin") == 1


def test_large_object_is_fetched_about_once(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("large.bin", content(6, 24 * MIB))
    where = forebay.mount(bucket.url)
    bucket.proxy.forget()
    with ThreadPoolExecutor(4) as readers:
        assert set(readers.map(lambda _: (where / "large.bin").read_bytes(), range(4))) == {bucket.truth["large.bin"]}
    fetched = sum(request.range[1] for request in bucket.proxy.requests if request.kind == "GET" and request.range)
    assert 24 * MIB <= fetched <= 26 * MIB


def test_foreground_ends_with_a_signal(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("f", b"data")
    where = forebay.new_mountpoint()
    process = forebay.start("mount", bucket.url, where, "--foreground", "--log-format", "json")
    try:
        wait_until(lambda: os.path.ismount(where) or process.poll() is not None, "the mount")
        assert (where / "f").read_bytes() == b"data"
        process.terminate()
        _, stderr = process.communicate(timeout=180)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert not os.path.ismount(where)
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert any("is mounted" in line["message"] for line in lines)


def test_background_process_holds_nothing_of_ours(forebay: CommandLine, bucket: Bucket) -> None:
    """A shell or driver that waits for the output of `forebay mount` to end must not wait for the mount to end."""
    where = forebay.mount(bucket.url)
    pid = forebay.status(where)["pid"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in ("0", "1")}
    assert targets == {"/dev/null"}
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert bucket.name.encode() not in arguments
    forebay.ok("umount", where)
    wait_until(lambda: not process_is_alive(pid), "the end of the process")


def test_busy_mount_is_not_unmounted_by_accident(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("f", b"data")
    where = forebay.mount(bucket.url)
    with (where / "f").open("rb") as file:
        busy = forebay("umount", where)
        assert busy.returncode == 30
        assert "busy" in busy.stderr
        forebay.ok("umount", where, "--lazy")
        assert not os.path.ismount(where)
        assert file.read() == b"data"
    wait_until(lambda: not forebay.pids(), "the process to end after the last user")


def test_force_ends_a_process_that_hangs(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.mount(bucket.url)
    pid = forebay.status(where)["pid"]
    os.kill(pid, signal.SIGSTOP)
    forebay.ok("umount", where, "--force")
    assert not os.path.ismount(where)
    assert not process_is_alive(pid)
    forebay.ok("mount", bucket.url, where)


def test_info_and_attributes(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url)
    cold = forebay.json("info", where / "large.bin")
    assert cold["cached"]["cached_bytes"] == 0
    data = (where / "large.bin").read_bytes()
    wait_until(lambda: forebay.status(where)["cache"]["fills_in_flight"] == 0, "fills to be kept")
    warm = forebay.json("info", where / "large.bin")
    assert warm["cached"]["cached_bytes"] == warm["size_bytes"] == len(data)
    assert warm["version"]["key"] == "large.bin"
    assert os.getxattr(where / "large.bin", "user.forebay.etag").decode() == warm["version"]["etag"]
    assert os.getxattr(where / "large.bin", "user.forebay.cached") == b"1.000"
    folder = forebay.json("info", where / "small")
    assert folder["files"] == 30
    text = forebay.ok("info", where / "large.bin")
    assert "100%" in text
    assert forebay("info", where / "none").returncode == 14
    assert forebay("info", "/etc/passwd").returncode == 31


def test_status_counts(forebay: CommandLine, bucket: Bucket) -> None:
    fill(bucket)
    where = forebay.mount(bucket.url, "--metrics-port", "0")
    read_tree(where)
    status = forebay.status(where)
    assert status["state"] == "serving"
    assert status["cache"]["fetched_bytes"] >= sum(map(len, bucket.truth.values()))
    assert {tier["name"] for tier in status["cache"]["tiers"]} == {"ram", "ssd"}
    with urllib.request.urlopen(f"http://127.0.0.1:{status['metrics_port']}/metrics", timeout=180) as answer:
        scraped = answer.read().decode()
    assert {line.split()[2] for line in scraped.splitlines() if line.startswith("# TYPE ")} == {
        row.name for row in metrics.TABLE
    }
    assert 'forebay_reads_total{from="store"}' in scraped
    text = forebay.ok("status")
    assert f"{bucket.url} at {where}" in text
    assert "waited for the store" in text
    assert forebay("status", "--json", where / "small").returncode == 0
