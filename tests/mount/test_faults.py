"""Outages, wrong answers, damaged and full cache folders: errors after a bounded wait, never wrong, short or empty data."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine, process_is_alive, wait_until
from forebay.tests.support.fault_proxy import Fault

MIB = 1024 * 1024
IO_TIMEOUT_S = 5
FLAGS = ("--io-timeout", f"{IO_TIMEOUT_S}s", "--metadata-ttl", "1s")
# Waits are bounded by the io-timeout; a loaded machine takes its time on top.
BOUND_S = IO_TIMEOUT_S + 60


def error_of_reading(path: Path) -> int:
    """The errno with which reading fails, within the bound."""
    start = time.monotonic()
    with pytest.raises(OSError) as caught:
        path.read_bytes()
    assert time.monotonic() - start < BOUND_S
    return caught.value.errno or 0


def reads_again(path: Path, expected: bytes) -> None:
    """The mount is back as soon as the store is."""

    def succeeds() -> bool:
        try:
            return path.read_bytes() == expected
        except OSError:
            return False

    wait_until(succeeds, f"reading {path.name} after the fault", timeout_s=120)


@pytest.mark.parametrize(
    "fault", [Fault.answer(503, "SlowDown"), Fault.hang(), Fault.reset(1000), Fault.answer(500, "InternalError")], ids=lambda f: f"{f.name}{f.status}"
)  # fmt: skip
def test_outage(forebay: CommandLine, bucket: Bucket, fault: Fault) -> None:
    bucket.put("seen", content(1, 300_000))
    bucket.put("unseen", content(2, 300_000))
    bucket.put("folder/inner", b"inner")
    where = forebay.mount(bucket.url, *FLAGS)
    assert (where / "seen").read_bytes() == bucket.truth["seen"]
    assert sorted(os.listdir(where)) == ["folder", "seen", "unseen"]
    bucket.proxy.fault = fault
    assert error_of_reading(where / "unseen") == errno.EIO
    assert (where / "seen").read_bytes() == bucket.truth["seen"]
    # A folder that was never listed cannot look empty.
    with pytest.raises(OSError) as caught:
        os.listdir(where / "folder")
    assert caught.value.errno == errno.EIO
    bucket.proxy.heal()
    reads_again(where / "unseen", bucket.truth["unseen"])
    reads_again(where / "folder" / "inner", b"inner")


def test_refused_connections(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("seen", content(1, 300_000))
    bucket.put("unseen", content(2, 300_000))
    where = forebay.mount(bucket.url, *FLAGS)
    assert (where / "seen").read_bytes() == bucket.truth["seen"]
    bucket.proxy.refuse()
    assert error_of_reading(where / "unseen") == errno.EIO
    assert (where / "seen").read_bytes() == bucket.truth["seen"]
    wait_until(
        lambda: forebay.status(where)["stores"][0]["down_since_s"] or not error_of_reading(where / "unseen"),
        "the store to be known as down",
    )
    assert "is down since" in forebay.ok("status")
    bucket.proxy.accept()
    reads_again(where / "unseen", bucket.truth["unseen"])
    assert forebay.status(where)["stores"][0]["down_since_s"] is None


def test_faults_in_turn_are_waited_out(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("f", content(3, 500_000))
    where = forebay.mount(bucket.url)
    bucket.proxy.script = [
        Fault.answer(503, only="GET"), Fault.reset(5000, only="GET"), Fault.truncate(100, only="GET"),
    ]  # fmt: skip
    assert (where / "f").read_bytes() == bucket.truth["f"]


def test_denied_and_gone(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("denied", content(4, 5000))
    bucket.put("gone", content(5, 5000))
    where = forebay.mount(bucket.url, *FLAGS)
    assert sorted(os.listdir(where)) == ["denied", "gone"]
    bucket.proxy.fault = Fault.answer(403, "AccessDenied", only="GET", key="denied")
    assert error_of_reading(where / "denied") in (errno.EACCES, errno.EIO)
    bucket.client.delete_object(Bucket=bucket.name, Key="gone")
    assert error_of_reading(where / "gone") in (errno.ENOENT, errno.ESTALE, errno.EIO)


def test_wrong_bytes_are_never_passed_on(forebay: CommandLine, bucket: Bucket) -> None:
    """Whole small objects carry an MD5 in their etag: a flipped bit on the way is noticed and fetched again."""
    bucket.put("f", content(6, 200_000))
    where = forebay.mount(bucket.url, *FLAGS)
    bucket.proxy.script = [Fault.flip(1234, only="GET")]
    assert (where / "f").read_bytes() == bucket.truth["f"]


def tier_files(forebay: CommandLine) -> Iterator[Path]:
    for base in (forebay.folder / "cache", forebay.ram):
        for path in base.rglob("*"):
            if path.is_file() and path.stat().st_size > 4096 and "pins" not in path.parts:
                yield path


def test_bits_flipped_under_a_running_mount(forebay: CommandLine, bucket: Bucket) -> None:
    for number in range(20):
        bucket.put(f"s{number}", content(number, 60_000))
    bucket.put("large", content(99, 10 * MIB))
    where = forebay.mount(bucket.url)
    assert read_tree(where) == bucket.truth
    wait_until(lambda: forebay.status(where)["cache"]["fills_in_flight"] == 0, "fills to be kept")
    flipped = 0
    for path in tier_files(forebay):
        with path.open("r+b") as file:
            for position in range(0, path.stat().st_size, 50_021):
                file.seek(position)
                byte = file.read(1)
                if byte:
                    file.seek(position)
                    file.write(bytes([byte[0] ^ 0x55]))
                    flipped += 1
    assert flipped > 10
    drop_page_cache(where)
    assert read_tree(where) == bucket.truth


def drop_page_cache(where: Path) -> None:
    """Make the kernel ask the mount again."""
    for folder, _, names in os.walk(where):
        for name in names:
            descriptor = os.open(Path(folder, name), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def test_cache_files_deleted_under_a_running_mount(forebay: CommandLine, bucket: Bucket) -> None:
    for number in range(10):
        bucket.put(f"s{number}", content(number, 60_000))
    bucket.put("large", content(99, 6 * MIB))
    where = forebay.mount(bucket.url)
    assert read_tree(where) == bucket.truth
    for path in list(tier_files(forebay)):
        path.unlink()
    drop_page_cache(where)
    assert read_tree(where) == bucket.truth


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_cache_disk(forebay: CommandLine, bucket: Bucket, small_disk: Path) -> None:
    for number in range(6):
        bucket.put(f"f{number}", content(number, 8 * MIB))
    flags = ("--cache-dir", str(small_disk), "--cache-size", "64MiB", "--ram-size", "0", "--free-space-ratio", "0")
    where = forebay.mount(bucket.url, *flags)
    (small_disk / "foreign").write_bytes(b"\0" * (60 * MIB))
    assert read_tree(where) == bucket.truth
    assert (small_disk / "foreign").stat().st_size == 60 * MIB


def test_more_data_than_cache(forebay: CommandLine, bucket: Bucket) -> None:
    for number in range(12):
        bucket.put(f"f{number}", content(number, 10 * MIB))
    where = forebay.mount(bucket.url, "--cache-size", "64MiB", "--ram-size", "16MiB")
    for _ in range(2):
        assert read_tree(where) == bucket.truth
        for tier in forebay.status(where)["cache"]["tiers"]:
            assert tier["used_bytes"] <= tier["capacity_bytes"]


def test_killed_at_random_moments(forebay: CommandLine, bucket: Bucket) -> None:
    """kill -9 while reading, five times; every byte served afterwards is the truth."""
    for number in range(40):
        bucket.put(f"s{number}", content(number, 20_000 * (number % 7 + 1)))
    bucket.put("large", content(99, 20 * MIB))
    where = forebay.new_mountpoint()
    for attempt in range(5):
        forebay.ok("mount", bucket.url, where)
        pid = forebay.status(where)["pid"]
        reader = subprocess.Popen(
            ["sh", "-c", f"cat {where}/* > /dev/null"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(0.05 * attempt)  # a random moment is what is wanted here, nothing is awaited
        os.kill(pid, signal.SIGKILL)
        reader.wait(timeout=180)
        wait_until(lambda pid=pid: not process_is_alive(pid), "the end of the process")  # type: ignore[misc]
    forebay.ok("mount", bucket.url, where)
    assert read_tree(where) == bucket.truth
