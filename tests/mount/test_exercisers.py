"""File-system exercisers that exist as packages, on a writable mount: fio with verification, stress-ng, rsync.

Each ends with a flush, so that what was exercised is also in the bucket, or gone from it.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.support.command_line import CommandLine
from forebay.tests.support.servers import unavailable

FIO = """
[global]
directory={where}
verify=crc32c
verify_fatal=1
do_verify=1
fallocate=none
[sequential]
rw=write
bs=1m
size=24m
end_fsync=1
numjobs=2
[random]
rw=randwrite
bs=4k
size=6m
fsync=64
numjobs=2
[unaligned]
rw=randwrite
bsrange=1k-200k
size=16m
ioengine=libaio
iodepth=8
[mapped]
rw=randwrite
bs=4k
size=4m
ioengine=mmap
"""
# So many operations of each, or two seconds of them.
STRESSORS = [
    "--hdd 1 --hdd-bytes 4M --hdd-opts wr-seq,rd-rnd,fsync --hdd-ops 50",
    "--fallocate 1 --fallocate-bytes 4M --fallocate-ops 20",
    "--rename 2 --rename-ops 200",
    "--dentry 1 --dentries 50 --dentry-ops 200",
    "--dir 1 --dir-dirs 64 --dir-ops 100",
    "--chmod 1 --chmod-ops 50",
    "--utime 1 --utime-ops 200",
    "--xattr 1 --xattr-ops 20",
    "--open 1 --open-ops 200",
    "--seek 1 --seek-size 2M --seek-ops 100",
    "--aio 1 --aio-ops 50",
    "--sync-file 1 --sync-file-bytes 2M --sync-file-ops 20",
    "--symlink 1 --symlink-ops 2",
    "--flock 2 --flock-ops 100",
    "--fcntl 1 --fcntl-ops 50",
    "--lockf 1 --lockf-ops 50",
    "--msync 1 --msync-bytes 2M --msync-ops 50",
    "--iomix 1 --iomix-bytes 4M --iomix-ops 50",
    "--getdent 1 --getdent-ops 50",
    "--mmap 1 --mmap-file --mmap-bytes 1M --mmap-ops 5",
]
TIMEOUT_S = 240


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        unavailable(f"{tool} is not installed (Debian package {tool})")
    return found


def keys(bucket: Bucket) -> list[str]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    return [item["Key"] for item in listed]


def test_fio_verifies_what_it_wrote(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    fio = need("fio")
    where = forebay.mount(bucket.url, "--writeback-delay", "0s")
    (tmp_path / "job").write_text(FIO.format(where=where))
    done = subprocess.run([fio, str(tmp_path / "job")], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    before = read_tree(where)
    assert len(before) == 6
    forebay.ok("flush", where, "--timeout", "3m")
    for key, data in before.items():
        assert bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read() == data, key
    assert read_tree(where) == before


def test_stress_ng_finds_nothing_wrong(forebay: CommandLine, bucket: Bucket) -> None:
    stress_ng = need("stress-ng")
    where = forebay.mount(bucket.url, "--writeback-delay", "0s")
    for words in STRESSORS:
        done = subprocess.run(
            [stress_ng, *words.split(), "--verify", "--timeout", "2", "--temp-path", str(where)],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, words + done.stdout + done.stderr
    assert os.listdir(where) == []
    link = subprocess.run(
        [stress_ng, "--link", "1", "--link-ops", "1", "--timeout", "2", "--temp-path", str(where)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert "link calls not allowed" in link.stdout + link.stderr
    forebay.ok("flush", where, "--timeout", "3m")
    assert keys(bucket) == []
    assert forebay.status(where)["write"]["failures"] == []


def test_rsync_transfers_nothing_the_second_time(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    rsync = need("rsync")
    source = tmp_path / "source"
    for index in range(30):
        path = source / f"d{index % 3}" / f"e{index % 2}" / f"f{index}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(index, index * 1000))
        path.chmod(0o640)
        os.utime(path, ns=(0, 1_000_000_000_000_000_000 + index * 1_000_000_007))
    for folder in [path for path in source.rglob("*") if path.is_dir()]:
        os.utime(folder, (0, 1_100_000_000))
    os.symlink("d0", source / "link")

    def changes(*flags: str) -> str:
        words = [rsync, "-a", "--itemize-changes", *flags, f"{source}/", f"{where}/copy/"]
        return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout

    where = forebay.mount(bucket.url, "--writeback-delay", "0s")
    assert changes().count(">f") == 30
    assert changes("--checksum") == ""
    forebay.ok("umount", "--flush", where)
    forebay.ok("mount", bucket.url, where)
    assert changes("--checksum") == "", "attributes survive upload and remount"


PROGRAM = """
import fcntl, os, subprocess, sys
from pathlib import Path
root = Path(sys.argv[1])

def other(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)

def answer(code, *arguments):
    return other(code, *arguments).communicate(timeout=60)[0].strip()

# Appends of two processes do not overwrite each other.
log = root / "log"
log.touch()
append = "import os,sys; fd=os.open(sys.argv[1], os.O_WRONLY|os.O_APPEND); [os.write(fd, b'%s-%04d\\\\n' % (sys.argv[2].encode(), i)) for i in range(200)]"
writers = [other(append, log, name) for name in "ab"]
assert [writer.wait(60) for writer in writers] == [0, 0]
for writer in writers:
    writer.stdout.close()
assert len(set(log.read_bytes().split())) == 400

# Locks hold between processes.
attempt = '''
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("held")
'''
with log.open("r+b") as file:
    for kind in ("flock", "lockf"):
        getattr(fcntl, kind)(file, fcntl.LOCK_EX)
        assert answer(attempt, log, kind) == "held", kind
        getattr(fcntl, kind)(file, fcntl.LOCK_UN)
        assert answer(attempt, log, kind) == "", kind

# Event files of TensorBoard: appended and flushed by one process, read by another while they are open.
length = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
with (root / "events").open("ab") as events:
    for turn in range(1, 4):
        events.write(bytes(100))
        events.flush()
        assert answer(length, root / "events") == str(100 * turn)

# Saved as vim does: the old file aside, a new one synced in its place, the old one removed.
text = root / "text"
text.write_text("old")
os.rename(text, root / "text~")
fd = os.open(text, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
os.write(fd, b"new")
os.fsync(fd)
os.close(fd)
os.unlink(root / "text~")

fd = os.open(root / "reserved", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, 1_000_000)
assert os.fstat(fd).st_size == 1_000_000
os.close(fd)
os.setxattr(text, "user.colour", b"blue")
os.utime(text, ns=(1, 1_234_567_890_123_456_789))
"""


def test_processes_beside_each_other(forebay: CommandLine, bucket: Bucket, tmp_path: Path) -> None:
    where = forebay.mount(bucket.url, "--writeback-delay", "0s")
    subprocess.run([sys.executable, "-c", PROGRAM, str(where)], check=True, timeout=TIMEOUT_S)
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "answer = 42\n")
        info = "tiny-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(where / "site"),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=TIMEOUT_S, capture_output=True)
    forebay.ok("umount", "--flush", where)
    forebay.ok("mount", bucket.url, where)
    assert (where / "text").read_text() == "new"
    assert os.getxattr(where / "text", "user.colour") == b"blue"
    assert (where / "text").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert "text~" not in keys(bucket)
    tiny = [sys.executable, "-c", "import tiny; print(tiny.answer)"]
    environ = {**os.environ, "PYTHONPATH": str(where / "site")}
    found = subprocess.run(tiny, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert found.stdout == "42\n"
