"""Mounts that keep their records in MongoDB: another one takes over, a second one is refused, and no secret is seen."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import SECRET, Bucket, content, read_tree
from forebay.tests.mount.test_writing import in_bucket
from forebay.tests.support.command_line import CommandLine, wait_until

MIB = 1024 * 1024
# A lease of six seconds.
SHORT = ("--io-timeout", "4s", "--writeback-delay", "0s")


def test_another_machine_finishes_what_a_killed_mount_acked(shared: CommandLine, bucket: Bucket) -> None:
    where = shared.mount(bucket.url, "--writeback-delay", "1h")
    expected = {"new/large": content(1, 10 * MIB), "new/small": b"small"}
    (where / "new").mkdir()
    for path, data in expected.items():
        (where / path).write_bytes(data)
    os.rename(where / "new" / "small", where / "moved")
    expected["moved"] = expected.pop("new/small")
    shared.kill(where)
    second = shared.mount(bucket.url, "--writeback-delay", "1h", "--cache-name", "other")
    assert read_tree(second) == expected
    assert in_bucket(bucket) == {}
    shared.ok("flush", second, "--timeout", "2m")
    assert in_bucket(bucket) == expected
    (second / "last").write_bytes(b"last")
    seen = shared.ok("status") + shared.ok("status", "--json") + shared.ok("writeback", "list", second, "--json")
    seen += Path(f"/proc/{shared.status(second)['pid']}/cmdline").read_text()
    shared.kill(second)
    assert "found 1 files" in shared.ok("recover", bucket.url)
    assert in_bucket(bucket) == {**expected, "last": b"last"}
    seen += shared.logs() + shared.ok("config")
    assert "MongoDB 127.0.0.1" in seen
    assert SECRET not in seen


def test_two_mounts_and_a_reader_see_what_any_of_them_closed(shared: CommandLine, bucket: Bucket) -> None:
    bucket.put("listed", b"listed")
    one = shared.mount(bucket.url)
    two = shared.mount(bucket.url, "--cache-name", "two", "--writeback-delay", "1h")
    reader = shared.mount(bucket.url, "--cache-name", "reader", "--read-only")
    for number in range(40):
        writer, other = (one, two) if number % 2 else (two, one)
        (writer / "f").write_bytes(b"%d" % number * (number * 1000 + 1))
        for where in (other, reader):
            assert (where / "f").read_bytes() == b"%d" % number * (number * 1000 + 1)
    with (one / "log").open("ab") as log:
        log.write(b"one ")
    with (two / "log").open("ab") as log:
        log.write(b"two")
    assert (reader / "log").read_bytes() == b"one two"
    (two / "d").mkdir()
    os.rename(one / "listed", one / "d" / "moved")
    os.rename(two / "d", two / "e")
    for where in (one, two, reader):
        assert sorted(os.listdir(where)) == ["e", "f", "log"]
        assert (where / "e" / "moved").read_bytes() == b"listed"
    descriptor = os.open(one / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(FileExistsError):
        os.open(two / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(OSError, match="busy"):
        (two / "lock").write_bytes(b"")
    os.close(descriptor)
    (two / "lock").unlink()
    assert not (one / "lock").exists()
    with pytest.raises(OSError, match="Read-only"):
        (reader / "x").write_bytes(b"")
    shared.ok("flush", two, "--timeout", "2m")
    truth = read_tree(one)
    assert in_bucket(bucket) == truth
    shared.kill(one)  # who did the writeback
    (two / "g").write_bytes(b"goes on")
    shared.ok("flush", two, "--timeout", "2m")
    assert in_bucket(bucket) == read_tree(reader) == {**truth, "g": b"goes on"}
    assert shared.status(two)["write"]["writeback_by"] == ""


# Has a file open for writing, in a process of its own: else each command that a test starts would close a copy of the descriptor.
WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(descriptor, b"never acked")
print("open", flush=True)
sys.stdin.readline()
try:
    os.write(descriptor, b"more")
    os.fsync(descriptor)
except OSError as error:
    print(error.errno, flush=True)
"""


def test_a_mount_that_was_suspended_for_long_goes_on_by_itself(shared: CommandLine, bucket: Bucket) -> None:
    """Only what it had open for writing is lost to it."""
    one = shared.mount(bucket.url, *SHORT)
    two = shared.mount(bucket.url, "--cache-name", "two", *SHORT)
    (one / "d").mkdir()
    (one / "d" / "f").write_bytes(b"acked")
    pid = int(shared.status(one)["pid"])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(one / "open")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: shared.status(two)["write"]["writeback_by"] == "", "take-over", timeout_s=90)
            os.rename(two / "d", two / "e")
            (two / "open").write_bytes(b"written elsewhere")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (one / "e" / "f").read_bytes() == b"acked"
        (one / "e" / "g").write_bytes(b"goes on")
        writer.stdin.write("go on\n")
        writer.stdin.flush()
        assert int(writer.stdout.readline()) == errno.ESTALE
    (one / "open").write_bytes(b"written anew")
    expected = {"e/f": b"acked", "e/g": b"goes on", "open": b"written anew"}
    assert read_tree(one) == read_tree(two) == expected
    shared.ok("flush", one, "--timeout", "2m")
    assert in_bucket(bucket) == expected
    assert "goes on as a new writer" in shared.logs()


def test_a_wrong_password_and_an_absent_server_are_named_without_it(shared: CommandLine, bucket: Bucket) -> None:
    url = shared.environment["FOREBAY_META_URL"]
    where = shared.new_mountpoint()
    refused = shared("mount", bucket.url, where, "--meta-url", url.replace(SECRET, SECRET + "-wrong"))
    assert refused.returncode == 55
    assert "password" in refused.stderr
    assert SECRET not in refused.stderr
    nonsense = shared("mount", bucket.url, where, "--meta-url", f"mongodb://u:{SECRET}@h:x/?bad")
    assert nonsense.returncode == 3
    assert SECRET not in nonsense.stderr + shared.logs()
