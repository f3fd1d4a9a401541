"""`forebay://` for Python programs: on the same cache as the mount, in many processes, with the libraries that people use."""

import io
import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest

from forebay.client.filesystem import ForebayFileSystem
from forebay.errors import ObjectChanged, StoreDenied, UsageError
from forebay.tests.client.conftest import Reading
from forebay.tests.support.command_line import wait_until
from forebay.tests.support.fault_proxy import Fault
from forebay.tests.support.reading_worker import read_in_child

MIB = 1024 * 1024


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_files_and_folders(reading: Reading) -> None:
    reading.put("a/1.txt", b"one")
    reading.put("a/b/2.txt", b"two")
    reading.put("top", b"")
    files = fsspec.filesystem("forebay")
    base = f"s3/{reading.bucket}"
    assert files.ls(reading.url, detail=False) == [f"{base}/a", f"{base}/top"]
    assert files.ls(f"{reading.url}/a/1.txt", detail=False) == [f"{base}/a/1.txt"]
    assert files.find(reading.url) == [f"{base}/a/1.txt", f"{base}/a/b/2.txt", f"{base}/top"]
    assert files.glob(f"{reading.url}/**/*.txt") == [f"{base}/a/1.txt", f"{base}/a/b/2.txt"]
    assert [entry["type"] for entry in files.ls(reading.url)] == ["directory", "file"]
    info = files.info(f"{reading.url}/a/1.txt")
    assert (info["name"], info["size"], info["type"]) == (f"{base}/a/1.txt", 3, "file")
    assert files.exists(f"{reading.url}/a")
    assert files.isdir(f"{reading.url}/a")
    assert not files.exists(f"{reading.url}/none")
    assert files.find(f"{reading.url}/none") == []
    assert files.cat_file(f"{reading.url}/a/1.txt") == b"one"
    assert files.cat(f"{reading.url}/a", recursive=True) == {f"{base}/a/1.txt": b"one", f"{base}/a/b/2.txt": b"two"}
    assert files.cat_file(f"{reading.url}/top") == b""
    assert files.du(reading.url) == 6
    with pytest.raises(FileNotFoundError):
        files.cat_file(f"{reading.url}/none")
    with pytest.raises(FileNotFoundError):
        files.open(f"{reading.url}/none")
    with pytest.raises(io.UnsupportedOperation):
        files.open(f"{reading.url}/new", "wb")


def test_one_process_is_started_and_ends_when_idle(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_IDLE_TIMEOUT", "1s")
    reading.put("x", b"x")
    files = fsspec.filesystem("forebay")
    assert files.cat_file(f"{reading.url}/x") == b"x"
    (holder,) = reading.forebay.json("status")["holders"]
    assert holder["role"] == "serve"
    wait_until(lambda: not reading.forebay.pids(), "the idle process to end")
    reading.proxy.forget()
    # It is started again when it is needed, on the same cache.
    assert files.cat_file(f"{reading.url}/x") == b"x"
    assert reading.proxy.count("GET") == 0


def test_reads_through_the_mount_that_is_there(reading: Reading) -> None:
    data = content(1, 3 * MIB)
    reading.put("d/x", data)
    where = reading.forebay.mount(f"s3://{reading.bucket}/d")
    assert (where / "x").read_bytes() == data
    reading.proxy.forget()
    assert fsspec.filesystem("forebay").cat_file(f"{reading.url}/d/x") == data
    assert reading.proxy.count("GET") == 0
    assert len(reading.forebay.pids()) == 1


def test_gives_way_to_a_mount(reading: Reading) -> None:
    data = content(2, 100_000)
    reading.put("x", data)
    files = fsspec.filesystem("forebay")
    with files.open(f"{reading.url}/x", block_size=1000) as file:
        assert file.read(10) == data[:10]
        where = reading.forebay.mount(f"s3://{reading.bucket}")
        # The process that served us is gone; the one of the mount answers, from the same cache.
        assert file.read() == data[10:]
    assert (where / "x").read_bytes() == data
    assert reading.proxy.count("GET") == 1


def test_random_reads_match(reading: Reading) -> None:
    data = content(3, 9 * MIB + 17)
    reading.put("x", data)
    choose = random.Random(4)
    files = fsspec.filesystem("forebay")
    with files.open(f"{reading.url}/x", block_size=64 * 1024) as file:
        for _ in range(60):
            offset, size = choose.randrange(len(data)), choose.randrange(200_000)
            file.seek(offset)
            assert file.read(size) == data[offset : offset + size]
    starts = [choose.randrange(len(data)) for _ in range(50)]
    ends = [start + choose.randrange(50_000) for start in starts]
    path = f"{reading.url}/x"
    assert files.cat_ranges([path] * 50, starts, ends) == [data[s:e] for s, e in zip(starts, ends, strict=True)]
    assert files.cat_file(path, start=-100) == data[-100:]
    assert files.cat_file(path, start=5, end=-5) == data[5:-5]
    assert files.cat_file(path) == data


def test_many_ranges_with_some_missing(reading: Reading) -> None:
    reading.put("x", b"0123456789")
    files = fsspec.filesystem("forebay")
    paths = [f"{reading.url}/x", f"{reading.url}/none", f"{reading.url}/x"]
    first, missing, last = files.cat_ranges(paths, [0, 0, 8], [3, 3, 100])
    assert (first, last) == (b"012", b"89")
    assert isinstance(missing, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        files.cat_ranges(paths, 0, 3, on_error="raise")


def test_open_file_keeps_its_version(reading: Reading) -> None:
    old, new = content(5, 3 * MIB), content(6, 3 * MIB)
    reading.put("x", old)
    files = fsspec.filesystem("forebay")
    with files.open(f"{reading.url}/x", block_size=4096) as file:
        assert file.read(100) == old[:100]
        reading.put("x", new)
        assert files.cat_file(f"{reading.url}/x") == new
        try:
            rest = file.read()
        except (ObjectChanged, OSError):
            return
        assert rest == old[100:]


def test_store_errors_come_out_as_what_they_are(reading: Reading) -> None:
    reading.put("x", b"x" * 1000)
    files = fsspec.filesystem("forebay")
    assert files.exists(f"{reading.url}/x")
    reading.proxy.fault = Fault.answer(403, "AccessDenied", only="GET")
    with pytest.raises(StoreDenied):
        files.cat_file(f"{reading.url}/x")


def test_options(reading: Reading, tmp_path: Path) -> None:
    reading.put("d/x", b"x")
    files = fsspec.filesystem(
        "forebay", source=f"s3://{reading.bucket}/d", ram_size="0", endpoint_url=reading.proxy.url
    )
    assert files.find(f"{reading.url}/d") == [f"s3/{reading.bucket}/d/x"]
    with pytest.raises(FileNotFoundError, match="not inside the source"):
        files.info(f"{reading.url}/elsewhere")
    with pytest.raises(UsageError, match="did you mean cache-size"):
        fsspec.filesystem("forebay", cache_sise="1G")
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "f").write_bytes(b"file")
    local = fsspec.filesystem("forebay", source=folder.as_uri())
    assert local.cat_file(f"forebay://file{folder}/f") == b"file"
    assert local.ls(f"forebay://file{folder}", detail=False) == [f"file{folder}/f"]
    with pytest.raises(UsageError, match="forebay serve"):
        fsspec.filesystem("forebay").info("forebay://file/nowhere/f")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(reading: Reading, method: str) -> None:
    """What a data loader does: the dataset object is made in the parent, used there, and then read by its workers."""
    expected = []
    for number in range(20):
        data = content(number, 20_000)
        reading.put(f"f{number}", data)
        expected.append((f"s3/{reading.bucket}/f{number}", len(data), sum(data)))
    files = fsspec.filesystem("forebay")
    paths = files.find(reading.url)
    assert files.cat_file(paths[0]) == content(0, 20_000)
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    workers = [context.Process(target=read_in_child, args=(files, paths, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    mine = files.cat(paths)
    results = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(120)
    assert [(len(data), sum(data)) for _, data in sorted(mine.items())] == [(s, t) for _, s, t in sorted(expected)]
    assert results == [(sorted(expected), content(0, 20_000)[:10])] * 4
    assert len(reading.forebay.pids()) == 1
    assert reading.proxy.count("GET") == 20


def test_threads_and_pickles(reading: Reading) -> None:
    for number in range(10):
        reading.put(f"f{number}", content(number, 50_000))
    files: ForebayFileSystem = pickle.loads(pickle.dumps(fsspec.filesystem("forebay")))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: files.cat_file(f"{reading.url}/f{n % 10}"), range(80)))
    assert found == [content(n % 10, 50_000) for n in range(80)]
    with files.open(f"{reading.url}/f0") as file:
        file.read(5)
        again = pickle.loads(pickle.dumps(file))
        assert again.read() == content(0, 50_000)[5:]
        again.close()


def test_pandas(reading: Reading) -> None:
    frame = pandas.DataFrame({"n": range(5000), "text": [f"row {n}" for n in range(5000)]})
    for name, data in (("t.csv", frame.to_csv(index=False).encode()), ("t.parquet", frame.to_parquet(index=False))):
        reading.put(name, data)
    pandas.testing.assert_frame_equal(pandas.read_csv(f"{reading.url}/t.csv"), frame)
    pandas.testing.assert_frame_equal(pandas.read_parquet(f"{reading.url}/t.parquet"), frame)


def test_pyarrow_dataset(reading: Reading) -> None:
    for part in range(3):
        table = pyarrow.table({"n": list(range(1000))})
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table, sink)
        reading.put(f"table/part={part}/data.parquet", sink.getvalue())
    files = fsspec.filesystem("forebay")
    dataset = pyarrow.dataset.dataset(
        f"s3/{reading.bucket}/table", filesystem=files, format="parquet", partitioning="hive"
    )
    assert dataset.count_rows() == 3000
    assert dataset.to_table(filter=pyarrow.dataset.field("n") < 10).num_rows == 30


def test_more_than_one_answer_holds(reading: Reading) -> None:
    """Answers are bounded: a long read, and many at once, come in parts of one version each."""
    data = [content(number, 7 * MIB + number) for number in range(5)]
    for number, one in enumerate(data):
        reading.put(f"f{number}", one)
    reading.put("long", content(9, 40 * MIB + 5))
    files = fsspec.filesystem("forebay")
    paths = [f"{reading.url}/f{number}" for number in range(5)]
    assert files.cat_ranges(paths, None, None) == data
    assert files.cat_file(f"{reading.url}/long") == content(9, 40 * MIB + 5)
    assert files.cat_file(f"{reading.url}/long", start=-30 * MIB) == content(9, 40 * MIB + 5)[-30 * MIB :]
