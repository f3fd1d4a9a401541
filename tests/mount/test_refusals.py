"""Whatever keeps a mount from coming up is said with its reason, its remedy, and an exit code of its own."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket
from forebay.tests.support.command_line import CommandLine


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--cache-size", "12X"], 2, "--cache-size: '12X' has the unknown unit 'X'"),
        (["--cache-size", "900PiB"], 2, "more than the disks have"),
        (["--cache-size", "1M"], 2, "too small"),
        (["--ram-size", "900TiB"], 2, "more than"),
        (["--free-space-ratio", "1.5"], 2, "more than 1"),
        (["--eviction", "random"], 2, "not one of s3fifo, lru, ttl, epoch"),
        (["--io-timeout", "0"], 2, "must wait for some time"),
        (["--umask", "888"], 2, "not a umask"),
        (["--endpoint-url", "localhost"], 2, "not a URL"),
        (["--cache-dir", "/proc/forebay"], 2, "is on proc, which holds no data"),
        (["--profile", "no-such-profile"], 2, "no-such-profile"),
        (["--log-file", "/proc/forebay.log"], 3, "cannot be written"),
        (["--no-such-flag"], 2, "unrecognized arguments"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_options_that_make_no_sense(
    forebay: CommandLine, bucket: Bucket, flags: list[str], code: int, says: str
) -> None:
    where = forebay.new_mountpoint()
    done = forebay("mount", bucket.url, where, *flags)
    assert says in done.stderr, done.stderr
    assert done.returncode == code
    assert not os.path.ismount(where)
    assert forebay.pids() == []


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("s3://no-such-bucket-anywhere", 13, "no such bucket"),
        ("file:///no/such/folder", 13, "no such folder"),
        ("s3://", 2, "no name of a bucket"),
        ("bucket", 2, "neither a URL"),
        ("/some/folder", 2, "file:///some/folder"),
        ("nonsense://x", 2, "nonsense"),
    ],
)
def test_sources_that_are_not_there(forebay: CommandLine, source: str, code: int, says: str) -> None:
    done = forebay("mount", source, forebay.new_mountpoint())
    assert says in done.stderr, done.stderr
    assert done.returncode == code
    assert forebay.pids() == []


def test_mountpoints_that_cannot_be_used(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    file = tmp_path / "file"
    file.touch()
    for where, says in ((full, "not empty"), (file, "not a folder"), (tmp_path / "none", "does not exist")):
        done = forebay("mount", bucket.url, where)
        assert says in done.stderr
        assert done.returncode == 30
    where = forebay.mount(bucket.url)
    again = forebay("mount", bucket.url, where, "--cache-name", "another")
    assert again.returncode == 30
    assert "mountpoint already" in again.stderr
    done = forebay("umount", tmp_path / "full")
    assert done.returncode == 31
    forebay.ok("mount", bucket.url, full, "--nonempty", "--cache-name", "third", "--read-only")
    assert not (full / "x").exists()
    forebay.ok("umount", full)


def test_cache_in_use_is_refused_and_names_the_holder(forebay: CommandLine, bucket: Bucket) -> None:
    first = forebay.mount(bucket.url)
    done = forebay("mount", bucket.url, forebay.new_mountpoint())
    assert done.returncode == 21
    assert f"at {first}" in done.stderr
    assert "cache-name" in done.stderr
    refused = forebay("mount", bucket.url, forebay.new_mountpoint(), "--cache-name", "of-its-own")
    assert refused.returncode == 21
    assert "write tier" in refused.stderr
    assert "--read-only" in refused.stderr
    forebay.mount(bucket.url, "--cache-name", "of-its-own", "--read-only")


def test_cache_in_use_by_somebody_unknown(forebay: CommandLine, bucket: Bucket) -> None:
    """The registry is not what protects the folder: the lock is."""
    forebay.mount(bucket.url)
    done = forebay("mount", bucket.url, forebay.new_mountpoint(), environ={"XDG_RUNTIME_DIR": "/nonexistent-runtime"})
    assert done.returncode == 21
    assert "in use by process" in done.stderr


def test_no_credentials(forebay: CommandLine, bucket: Bucket) -> None:
    gone = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    done = forebay("mount", bucket.url, forebay.new_mountpoint(), environ=gone)
    assert done.returncode == 12, done.stderr
    assert "credentials" in done.stderr


def test_unreachable_store(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.proxy.refuse()
    done = forebay("mount", bucket.url, forebay.new_mountpoint(), "--io-timeout", "2s")
    assert done.returncode == 11
    assert bucket.name in done.stderr


def test_metrics_port_taken(forebay: CommandLine, bucket: Bucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = forebay("mount", bucket.url, forebay.new_mountpoint(), "--metrics-port", str(port))
    assert done.returncode == 3
    assert f"127.0.0.1:{port}" in done.stderr


def test_secrets_are_nowhere(forebay: CommandLine, bucket: Bucket) -> None:
    bucket.put("f", b"data")
    secret = forebay.environment["AWS_SECRET_ACCESS_KEY"]
    where = forebay.mount(bucket.url, "--log-level", "debug")
    (where / "f").read_bytes()
    pid = forebay.status(where)["pid"]
    shown = [
        forebay.ok("status", "--json"),
        forebay.ok("config", "--json"),
        Path(f"/proc/{pid}/cmdline").read_text(),
        forebay.logs(),
        subprocess.run(["cat", "/proc/self/mountinfo"], capture_output=True, text=True, check=True).stdout,
    ]
    for text in shown:
        assert secret not in text
        assert forebay.environment["AWS_ACCESS_KEY_ID"] not in text
    for path in (forebay.folder / "run" / "forebay").iterdir():
        assert path.stat().st_mode & 0o077 == 0
        if path.is_file():
            assert secret not in path.read_text()
