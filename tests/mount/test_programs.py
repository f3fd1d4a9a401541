"""Programs that people run on their data, on a writable mount while it writes back: vim, DuckDB, Parquet, TensorBoard's event files, torch.

Each test ends with a flush, and finds in the bucket exactly what the mount shows. Each program runs in a process of its own.
"""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, read_tree
from forebay.tests.mount.test_writing import in_bucket
from forebay.tests.support.command_line import CommandLine
from forebay.tests.support.servers import unavailable

TIMEOUT_S = 240


@pytest.fixture
def where(forebay: CommandLine, bucket: Bucket) -> Path:
    """A mount whose uploads begin at once, also of files that are open."""
    return forebay.mount(bucket.url, "--writeback-delay", "0s", "--max-dirty-age", "1s")


def need_package(name: str, *, is_installed_for_tests: bool = True) -> None:
    if importlib.util.find_spec(name) is None:
        if is_installed_for_tests:
            unavailable(f"the package {name} is not installed")
        pytest.skip(f"the package {name} is not installed (it comes with `make demo`)")


def run(program: str, *arguments: str | Path) -> str:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bucket_holds_what_is_shown(forebay: CommandLine, bucket: Bucket, where: Path) -> dict[str, bytes]:
    shown = read_tree(where)
    forebay.ok("flush", where, "--timeout", "3m")
    assert read_tree(where) == shown
    assert in_bucket(bucket) == shown
    assert forebay.status(where)["write"]["counts"]["conflicts"] == 0
    return shown


@pytest.mark.parametrize("copy", ["yes", "no", "auto"])
def test_vim_saves(forebay: CommandLine, bucket: Bucket, where: Path, copy: str) -> None:
    """In place or by renaming the old file aside, with a backup, a swap file and an undo file beside it."""
    vim = shutil.which("vim")
    if vim is None:
        unavailable("vim is not installed (Debian package vim)")
    text = where / "text"
    text.write_text("one\n" * 5000)
    text.chmod(0o640)
    settings = f"set backup writebackup backupcopy={copy} backupskip= backupdir=. directory=. undofile undodir=. swapfile updatecount=1 fsync"
    for old, new in (("one", "two"), ("two", "three")):
        commands = [
            settings,
            "edit text",
            f"%s/{old}/{new}/",
            "preserve",
            "call writefile([swapname('%')], 'swap')",
            "wq",
        ]
        words = [vim, "-Nu", "NONE", "-i", "NONE", "-es"]
        for command in commands:
            words += ["-c", command]
        done = subprocess.run(words, cwd=where, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert text.read_text() == "three\n" * 5000
    assert text.stat().st_mode & 0o777 == 0o640
    assert (where / "swap").read_text().strip().endswith(".text.swp"), "no swap file was in use"
    undone = ["-c", "set undofile undodir=.", "-c", "edit text", "-c", "undo", "-c", "write! undone", "-c", "q!"]
    subprocess.run([vim, "-Nu", "NONE", "-i", "NONE", "-es", *undone], cwd=where, timeout=TIMEOUT_S, check=True)
    shown = bucket_holds_what_is_shown(forebay, bucket, where)
    assert shown["undone"] == b"two\n" * 5000
    assert shown["text~"] == b"two\n" * 5000
    assert sorted(shown) == [".text.un~", "swap", "text", "text~", "undone"]


DUCKDB = """
import os, signal, sys
import duckdb
root, step = sys.argv[1], sys.argv[2]
base = duckdb.connect(f"{root}/lake.duckdb", config={"threads": 2, "memory_limit": "200MB", "temp_directory": f"{root}/spill"})
if step == "make":
    base.execute("create table t as select range as a, md5(range::varchar) as b from range(200000)")
    base.execute("checkpoint")
    base.execute("insert into t select range, 'later' from range(200000, 250000)")
    base.execute("delete from t where a % 7 = 0")
    base.execute("create index by_a on t(a)")
elif step == "kill":
    base.execute("insert into t values (-1, 'acked')")
    base.execute("begin")
    base.execute("update t set b = 'torn'")
    base.execute("insert into t select range, 'torn' from range(300000, 400000)")
    os.kill(os.getpid(), signal.SIGKILL)
elif step == "export":
    base.execute(f"copy t to '{root}/t.parquet' (format parquet, row_group_size 20000)")
    base.execute(f"copy t to '{root}/parts' (format parquet, partition_by (kind), overwrite_or_ignore)".replace("copy t", "copy (select *, a % 3 as kind from t)"))
    again = f"read_parquet('{root}/t.parquet')"
    assert base.execute(f"select count(*) from (select * from t except select * from {again})").fetchone() == (0,)
    assert base.execute(f"select count(*) from read_parquet('{root}/parts/*/*.parquet')").fetchone() == base.execute("select count(*) from t").fetchone()
print(base.execute("select count(*), sum(a), count(*) filter (where b = 'torn'), max(b) from t").fetchone())
base.close()
"""


def test_duckdb(forebay: CommandLine, bucket: Bucket, where: Path) -> None:
    """Made, checkpointed, killed in a transaction, exported; on this mount and on the next."""
    need_package("duckdb")
    made = run(DUCKDB, where, "make").strip()
    assert run(DUCKDB, where, "look").strip() == made
    killed = subprocess.run([sys.executable, "-c", DUCKDB, str(where), "kill"], timeout=TIMEOUT_S, check=False)
    assert killed.returncode == -9
    rows, total, torn, last = (part.strip(" ()'") for part in made.split(","))
    found = run(DUCKDB, where, "export").strip()
    assert found == f"({int(rows) + 1}, {int(total) - 1}, {torn}, '{last}')"
    bucket_holds_what_is_shown(forebay, bucket, where)
    forebay.kill(where)
    forebay.ok("mount", bucket.url, where)
    assert run(DUCKDB, where, "look").strip() == found
    bucket_holds_what_is_shown(forebay, bucket, where)


PARQUET = """
import sys
import numpy as np, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq
root = sys.argv[1]
rng = np.random.default_rng(1)
schema = pa.schema([("label", pa.int64()), ("image", pa.binary())])
tables = []
with pq.ParquetWriter(f"{root}/train.parquet", schema) as writer:
    for group in range(12):
        table = pa.table({"label": rng.integers(0, 5, 200), "image": [rng.bytes(3000) for _ in range(200)]}, schema=schema)
        writer.write_table(table)
        tables.append(table)
whole = pa.concat_tables(tables)
assert pq.read_table(f"{root}/train.parquet").equals(whole)
assert pq.read_table(f"{root}/train.parquet", memory_map=True).equals(whole)
for turn in range(2):  # the second time over what is there
    ds.write_dataset(whole, f"{root}/set", format="parquet", partitioning=["label"], max_rows_per_file=200, max_rows_per_group=100,
                     existing_data_behavior="delete_matching")
found = ds.dataset(f"{root}/set", format="parquet", partitioning=["label"]).to_table().sort_by("image")
assert found.select(["label", "image"]).cast(schema).equals(whole.sort_by("image"))
with pa.OSFile(f"{root}/stream.arrow", "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
    for table in tables:
        writer.write_table(table)
with pa.memory_map(f"{root}/stream.arrow") as source:
    assert pa.ipc.open_file(source).read_all().equals(whole)
"""


def test_parquet_and_arrow_writers(forebay: CommandLine, bucket: Bucket, where: Path) -> None:
    run(PARQUET, where)
    assert len(bucket_holds_what_is_shown(forebay, bucket, where)) > 15


EVENTS = """
import sys
from tensorboardX import SummaryWriter
writer = SummaryWriter(sys.argv[1], flush_secs=1)
for step in range(300):
    writer.add_scalar("loss", 1 / (step + 1), step)
    writer.add_histogram("weights", [float(step)] * 50, step)
    if step % 10 == 0:
        writer.flush()
        print(step, flush=True)
        sys.stdin.readline()  # go on when it was read
writer.close()
"""


def whole_records(data: bytes) -> tuple[int, int]:
    """Records of a TFRecord file, and the bytes after the last whole one."""
    offset = count = 0
    while len(data) - offset >= 16:
        size = int.from_bytes(data[offset : offset + 8], "little")
        if len(data) - offset < size + 16:
            break
        offset += size + 16
        count += 1
    return count, len(data) - offset


def test_event_files_are_read_while_they_are_appended_to(forebay: CommandLine, bucket: Bucket, where: Path) -> None:
    """The reader keeps the file open and reads on at its end, as TensorBoard does; uploads go on meanwhile."""
    need_package("tensorboardX")
    program = subprocess.Popen(
        [sys.executable, "-c", EVENTS, str(where / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    read = b""
    reader = None
    try:
        for step in program.stdout:
            if reader is None:
                (path,) = (where / "run").iterdir()
                reader = path.open("rb", buffering=0)
            wanted = 2 * (int(step) + 1)
            deadline = time.monotonic() + TIMEOUT_S
            while whole_records(read)[0] < wanted:  # it is written by another thread of the program
                assert time.monotonic() < deadline, f"{whole_records(read)} of {wanted} records arrived"
                read += reader.read(1 << 20)
            program.stdin.write("\n")
            program.stdin.flush()
        assert program.wait(TIMEOUT_S) == 0
    finally:
        program.kill()
        program.wait()
        program.stdin.close()
        program.stdout.close()
        if reader is not None:
            reader.close()
    shown = bucket_holds_what_is_shown(forebay, bucket, where)
    (data,) = shown.values()
    assert data.startswith(read)
    assert whole_records(data) == (601, 0), "a header, and two records for each step"


TORCH = """
import os, sys
import torch
root = sys.argv[1]
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(4):
    model(torch.randn(8, 512)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, f"{root}/last.pt.tmp")
    os.replace(f"{root}/last.pt.tmp", f"{root}/last.pt")
    found = torch.load(f"{root}/last.pt", mmap=True)
    assert found["step"] == step
    for name, value in model.state_dict().items():
        assert torch.equal(found["model"][name], value), name
    held = found if step == 1 else held if step > 1 else None
# What was mapped stays what it was, though it was replaced since.
assert held["step"] == 1 and held["model"]["0.weight"].isfinite().all()
torch.save(model.state_dict(), f"{root}/model.pt", _use_new_zipfile_serialization=False)
again = torch.load(f"{root}/model.pt")
assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
"""


def test_torch_checkpoints(forebay: CommandLine, bucket: Bucket, where: Path) -> None:
    """Saved beside, moved over the last one, and loaded by mapping, while each is on its way to the bucket."""
    need_package("torch", is_installed_for_tests=False)
    run(TORCH, where)
    shown = bucket_holds_what_is_shown(forebay, bucket, where)
    assert sorted(shown) == ["last.pt", "model.pt"]
