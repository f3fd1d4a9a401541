"""The write path beside its peers: the speed table of writing through a mount.

    make bench                        every row, after those of reading
    python -m forebay.benchmarks.write --rows sequential,files --runs 3
    python -m forebay.benchmarks.write --scale 0.1         a tenth of every size, to try the harness

All sides run in turn (A B A B ...) against one SeaweedFS; medians are printed. What one side still has to send is awaited
before the next one's turn, so that nobody is measured under another's writeback.

The promises differ: Forebay's close returns when the bytes and their record are synced to disk; JuiceFS with `--writeback` and
rclone leave them in the page cache.
"""

import contextlib
import io
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from forebay.benchmarks.contenders import Contender, Forebay, JuiceFS, Rclone
from forebay.benchmarks.lab import Lab, drop_page_cache, put_random_object, wait_for
from forebay.benchmarks.program import run_rows
from forebay.benchmarks.report import Row

MIB = 1024 * 1024
SETTLE_TIMEOUT_S = 300
# With the default of rclone (5 s) its time to the bucket would mostly be that pause; Forebay's default is 1 s too.
RCLONE_WRITES = ("--vfs-cache-mode", "writes", "--vfs-write-back", "1s", "--transfers", "32")


@dataclass
class Plan:
    runs: int
    scale: float

    @property
    def large_bytes(self) -> int:
        return max(int(2048 * self.scale), 64) * MIB

    @property
    def small_count(self) -> int:
        return int(10_000 * self.scale)

    small_bytes: int = 4096


def sequential(plan: Plan, lab: Lab) -> list[Row]:
    """One file of 2 GiB in writes of 1 MiB, fsync, close; a new file each time."""
    row = Row("2 GiB sequential write, fsync, close", "MB/s", against="juicefs", target=1.5)
    local = Row("the same, beside the local disk", "MB/s", against="local disk", target=0.6)
    forebay = Forebay(lab, lab.s3.new_bucket("sequential"), writable=True)
    juicefs = JuiceFS(lab, lab.s3.new_bucket("sequential-jfs"), "--writeback")
    disk = lab.folder / "local"
    disk.mkdir()
    with mounted(forebay, juicefs):
        for run in range(plan.runs):
            for name, folder in (
                ("forebay", forebay.mountpoint),
                ("juicefs", juicefs.mountpoint),
                ("local disk", disk),
            ):
                drop_page_cache()
                path = folder / f"large{run}.bin"
                measured = lab.write("sequential", str(path), str(plan.large_bytes))
                rate = measured["bytes"] / measured["seconds"] / 1e6
                if name != "local disk":
                    row.add(name, rate)
                if name != "juicefs":
                    local.add(name, rate)
                wait_for(lambda: forebay.settled() and juicefs.settled(), SETTLE_TIMEOUT_S, "writeback")
                path.unlink()
    return [row, local]


def files(plan: Plan, lab: Lab) -> list[Row]:
    """10,000 files of 4 KiB in one folder, one after the other; then the time until the bucket has them all."""
    rate = Row("10,000 files of 4 KiB: create, write, close", "files/s", against="juicefs", target=2)
    bucket = Row(
        "from the first create until all are in the bucket", "s", higher_is_better=False, against="juicefs", target=1
    )
    versus_rclone = Row("the same, beside rclone", "s", higher_is_better=False, against="rclone", target=1)
    forebay = Forebay(lab, lab.s3.new_bucket("files"), writable=True)
    juicefs = JuiceFS(lab, lab.s3.new_bucket("files-jfs"), "--writeback")
    rclone = Rclone(lab, lab.s3.new_bucket("files-rclone"), *RCLONE_WRITES)
    with mounted(forebay, juicefs, rclone):
        for run in range(plan.runs):
            for contender in (forebay, juicefs, rclone):
                folder = contender.mountpoint / f"run{run}"
                folder.mkdir()
                drop_page_cache()
                # JuiceFS stores blocks, not files: what came since is as many.
                known = 0 if contender is not juicefs else count_keys(lab, juicefs.bucket)
                start = time.perf_counter()
                measured = lab.write("files", str(folder), str(plan.small_count), str(plan.small_bytes))
                rate.add(contender.name, measured["operations"] / measured["seconds"])
                if contender is juicefs:
                    wait_for(juicefs.settled, SETTLE_TIMEOUT_S, "writeback of JuiceFS")
                    await_keys(lab, juicefs.bucket, "", known + plan.small_count)
                else:
                    await_keys(lab, contender.bucket, f"run{run}", plan.small_count)
                seconds = time.perf_counter() - start
                if contender is not rclone:
                    bucket.add(contender.name, seconds)
                if contender is not juicefs:
                    versus_rclone.add(contender.name, seconds)
                wait_for(forebay.settled, SETTLE_TIMEOUT_S, "writeback of Forebay")
        folder = lab.folder / "local"
        for run in range(plan.runs):
            (folder / f"run{run}").mkdir(parents=True)
            measured = lab.write("files", str(folder / f"run{run}"), str(plan.small_count), str(plan.small_bytes))
            rate.add("local disk, not synced", measured["operations"] / measured["seconds"])
    return [rate, bucket, versus_rclone]


def upload(plan: Plan, lab: Lab) -> list[Row]:
    """From the close of a 2 GiB file until it is clean, beside boto3 sending as much from memory in parts."""
    row = Row("upload of one 2 GiB file, from close to clean", "MB/s", against="boto3", target=0.8)
    forebay = Forebay(lab, lab.s3.new_bucket("upload"), "--writeback-delay", "0s", writable=True)
    boto3_bucket = lab.s3.new_bucket("upload-boto3")
    concurrency = best_concurrency(lab, boto3_bucket, plan)
    row.note = f"boto3 with {concurrency} parts of 16 MiB at once"
    with mounted(forebay):
        for run in range(plan.runs):
            drop_page_cache()
            row.add("boto3", plan.large_bytes / boto3_upload(lab, boto3_bucket, plan.large_bytes, concurrency) / 1e6)
            drop_page_cache()
            path = forebay.mountpoint / f"large{run}.bin"
            lab.write("sequential", str(path), str(plan.large_bytes))
            seconds = wait_for(lambda path=path: is_clean(path), SETTLE_TIMEOUT_S, "upload")
            row.add("forebay", plan.large_bytes / seconds / 1e6)
            path.unlink()
            wait_for(forebay.settled, SETTLE_TIMEOUT_S, "deletion")
    return [row]


def reading(plan: Plan, lab: Lab) -> list[Row]:
    """A cached 2 GiB object read with the page cache dropped: alone, and while 4 GiB are written back."""
    bucket = lab.s3.new_bucket("reading")
    put_random_object(lab, bucket, "large.bin", plan.large_bytes)
    row = Row("read of a cached 2 GiB file while writing back at full speed", "MB/s", against="undisturbed", target=0.5)
    forebay = Forebay(lab, bucket, "--ram-size", "0", "--writeback-delay", "0s", writable=True)
    with mounted(forebay):
        cached = str(forebay.mountpoint / "large.bin")
        lab.read("sequential", cached)
        for run in range(plan.runs):
            drop_page_cache()
            measured = lab.read("sequential", cached)
            row.add("undisturbed", measured["bytes"] / measured["seconds"] / 1e6)
            path = forebay.mountpoint / f"written{run}.bin"
            lab.write("sequential", str(path), str(2 * plan.large_bytes))
            drop_page_cache()
            measured = lab.read("sequential", cached)
            if is_clean(path):
                raise RuntimeError("the writeback ended before the reading did: nothing was measured")
            row.add("forebay", measured["bytes"] / measured["seconds"] / 1e6)
            wait_for(lambda path=path: is_clean(path), SETTLE_TIMEOUT_S, "upload")
            path.unlink()
            wait_for(forebay.settled, SETTLE_TIMEOUT_S, "deletion")
    return [row]


# --- Inside. ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(*contenders: Contender) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for contender in contenders:
            contender.mount()
            stack.callback(contender.unmount)
        yield


def is_clean(path: Path) -> bool:
    return os.getxattr(path, "user.forebay.state") == b"clean"


def count_keys(lab: Lab, bucket: str, folder: str = "") -> int:
    """Objects in the bucket, below a folder if one is given, without its marker."""
    import obstore

    pages = obstore.list(lab.obstore(bucket), prefix=folder or None)
    return sum(1 for page in pages for found in page if found["path"] != folder)


def await_keys(lab: Lab, bucket: str, folder: str, count: int) -> None:
    """Return when the bucket has `count` objects below `folder`. Looking costs at most a quarter of the time."""
    deadline = time.perf_counter() + SETTLE_TIMEOUT_S
    while True:
        began = time.perf_counter()
        found = count_keys(lab, bucket, folder)
        if found >= count:
            return
        if began > deadline:
            raise TimeoutError(f"{found} of {count} objects in the bucket after {SETTLE_TIMEOUT_S} s")
        time.sleep(max(3 * (time.perf_counter() - began), 0.05))


def best_concurrency(lab: Lab, bucket: str, plan: Plan) -> int:
    """How many parts at once suit boto3 best here, by one try of each."""
    seconds = {parts: boto3_upload(lab, bucket, plan.large_bytes // 2, parts) for parts in (4, 8, 16)}
    return min(seconds, key=lambda parts: seconds[parts])


def boto3_upload(lab: Lab, bucket: str, size_bytes: int, concurrency: int) -> float:
    """Seconds that boto3 takes for an object of `size_bytes` that is in memory."""
    from boto3.s3.transfer import TransferConfig

    body = io.BytesIO(random.randbytes(64 * MIB) * (size_bytes // (64 * MIB)))
    config = TransferConfig(multipart_chunksize=16 * MIB, max_concurrency=concurrency)
    client = lab.s3.client()
    start = time.perf_counter()
    client.upload_fileobj(body, bucket, "boto3.bin", Config=config)
    seconds = time.perf_counter() - start
    client.delete_object(Bucket=bucket, Key="boto3.bin")
    return seconds


ROWS: dict[str, Callable[[Plan, Lab], list[Row]]] = {
    "sequential": sequential,
    "files": files,
    "upload": upload,
    "reading": reading,
}


def main() -> None:
    run_rows(__doc__, ROWS, Plan, title="Writing through the mount", name="write")


if __name__ == "__main__":
    main()
