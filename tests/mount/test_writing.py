"""Writing through the real command line: what close acked survives, reaches the bucket, and every command says so."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine
from forebay.tests.support.fault_proxy import Fault

MIB = 1024 * 1024


def in_bucket(bucket: Bucket) -> dict[str, bytes]:
    found = {}
    for page in bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                found[item["Key"]] = bucket.client.get_object(Bucket=bucket.name, Key=item["Key"])["Body"].read()
    return found


def test_what_was_closed_survives_kill_9_and_is_finished_by_the_next_mount(
    forebay: CommandLine, bucket: Bucket
) -> None:
    bucket.put("listed/a", b"listed")
    where = forebay.mount(bucket.url, "--writeback-delay", "1h")
    expected = {"listed/a": b"changed", "new/large": content(1, 20 * MIB), "new/small": b"small"}
    (where / "new").mkdir()
    for path, data in expected.items():
        (where / path).write_bytes(data)
    os.rename(where / "new" / "small", where / "moved")
    expected["moved"] = expected.pop("new/small")
    forebay.kill(where)
    assert in_bucket(bucket) == {"listed/a": b"listed"}
    forebay.ok("mount", bucket.url, where, "--writeback-delay", "1h")
    assert read_tree(where) == expected
    forebay.ok("flush", where, "--timeout", "2m")
    assert in_bucket(bucket) == expected
    assert read_tree(where) == expected
    assert forebay.status(where)["write"]["dirty_files"] == 0


def test_commands_tell_what_is_where(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.mount(bucket.url)
    bucket.proxy.fault = Fault.answer(503, only="PUT")
    (where / "f").write_bytes(b"12345")
    info = forebay.json("info", where / "f")
    assert info["state"] in ("durable", "uploading")
    assert info["size_bytes"] == 5
    refused = forebay("flush", where, "--timeout", "1s")
    assert refused.returncode == 40
    assert "1 files are not in the bucket yet" in refused.stderr
    listed = forebay.json("writeback", "list", where)
    assert [one["path"] for one in listed["files"]] == ["f"]
    assert "f " in forebay.ok("writeback", "list", where)
    assert "not in the bucket yet" in forebay.ok("status", where)
    bucket.proxy.heal()
    forebay.ok("writeback", "retry", where)
    forebay.ok("flush", where / "f", "--timeout", "2m")
    assert forebay.json("info", where / "f")["state"] == "clean"
    assert "clean" in forebay.ok("info", where / "f")
    assert "all is in the bucket" in forebay.ok("writeback", "list", where)
    assert in_bucket(bucket) == {"f": b"12345"}


def test_recover_does_without_a_mount_and_umount_can_wait(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.mount(bucket.url, "--writeback-delay", "1h")
    (where / "f").write_bytes(b"left behind")
    forebay.kill(where)
    forebay.ok("umount", where)
    assert "found 1 files" in forebay.ok("recover", bucket.url)
    assert in_bucket(bucket) == {"f": b"left behind"}
    forebay.ok("mount", bucket.url, where, "--writeback-delay", "1h")
    (where / "g").write_bytes(b"waited for")
    forebay.ok("umount", "--flush", where)
    assert in_bucket(bucket) == {"f": b"left behind", "g": b"waited for"}


def test_read_only_refuses_and_write_through_waits(forebay: CommandLine, bucket: Bucket) -> None:
    where = forebay.mount(bucket.url, "--read-only", "--cache-name", "reader")
    with pytest.raises(OSError) as caught:
        (where / "f").write_bytes(b"x")
    assert caught.value.errno == errno.EROFS
    refused = forebay("flush", where)
    assert refused.returncode == 2
    assert "--read-only" in refused.stderr
    through = forebay.mount(bucket.url, "--write-mode", "through")
    (through / "f").write_bytes(b"through")
    assert in_bucket(bucket) == {"f": b"through"}


PROGRAM = """
import os, sqlite3, sys, tarfile
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
root = Path(sys.argv[1])
base = sqlite3.connect(root / "t.db")
base.execute("create table t (a, b)")
for index in range(50):
    with base:
        base.execute("insert into t values (?, ?)", (index, os.urandom(3000)))
with base:
    base.execute("delete from t where a % 3 = 0")
assert base.execute("pragma integrity_check").fetchone() == ("ok",)
assert base.execute("select count(*) from t").fetchone() == (33,)
base.close()
table = pa.table({"a": list(range(100_000)), "b": [str(i) for i in range(100_000)]})
pq.write_table(table, root / "t.parquet")
assert pq.read_table(root / "t.parquet").equals(table)
with tarfile.open(root / "t.tar", "w") as tar:
    tar.add(sys.argv[2], "tree")
with tarfile.open(root / "t.tar") as tar:
    tar.extractall(root / "untarred", filter="data")
for step in range(5):
    with open(root / "ckpt.tmp", "wb") as file:
        file.write(bytes([step]) * 1_000_000)
        file.flush()
        os.fsync(file.fileno())
    os.replace(root / "ckpt.tmp", root / "ckpt.pt")
    with open(root / "events", "ab") as log:
        log.write(b"%d\\n" % step)
"""


def test_programs_work_on_it(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    """sqlite3 (rollback journal), Parquet, tar, checkpoints by rename, appended logs, git."""
    where = forebay.mount(bucket.url)
    tree = tmp_path / "tree"
    for index in range(40):
        path = tree / f"d{index % 4}" / f"f{index}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(index, 3000))
    subprocess.run([sys.executable, "-c", PROGRAM, str(where), str(tree)], check=True, timeout=120)
    assert read_tree(where / "untarred" / "tree") == read_tree(tree)

    def git(*words: str | Path, cwd: Path) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "gc.auto=0"]
        return subprocess.run(
            ["git", *identity, *map(str, words)], cwd=cwd, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    git("init", "-q", where / "repo", cwd=where)
    subprocess.run(["cp", "-r", str(tree), str(where / "repo")], check=True, timeout=120)
    git("add", ".", cwd=where / "repo")
    git("commit", "-q", "-m", "one", cwd=where / "repo")
    assert git("status", "--short", cwd=where / "repo") == ""
    git("clone", "-q", where / "repo", where / "clone", cwd=where)
    git("fsck", "--strict", cwd=where / "clone")
    before = read_tree(where)
    forebay.ok("flush", where, "--timeout", "2m")
    assert in_bucket(bucket) == before
    forebay.ok("umount", where)
    forebay.ok("mount", bucket.url, where)
    assert read_tree(where) == before
    assert before["ckpt.pt"] == bytes([4]) * 1_000_000
    assert before["events"] == b"0\n1\n2\n3\n4\n"
    assert "ckpt.tmp" not in before


def test_the_examples_of_the_page_about_semantics_hold(forebay: CommandLine, bucket: Bucket) -> None:
    page = (Path(__file__).parents[2] / "docs" / "semantics.md").read_text()
    section = page[page.index("## Writing") :]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    assert len(lines) > 5
    where = forebay.mount(bucket.url)
    subprocess.run(["bash", "-euc", "\n".join(lines)], cwd=where, check=True, timeout=120)
