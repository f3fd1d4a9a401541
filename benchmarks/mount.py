"""The read path beside its peers: the speed and memory table of the mount.

    make bench                        every row
    python -m forebay.benchmarks.mount --rows sequential,random --runs 3
    python -m forebay.benchmarks.mount --scale 0.1         a tenth of every size, to try the harness

Both sides run in turn (A B A B ...) against one SeaweedFS with the same cache size; medians are printed.
Forebay runs without its RAM tier where a row is about the SSD tier.
"""

import asyncio
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forebay.benchmarks.contenders import Contender, Forebay, JuiceFS, Rclone
from forebay.benchmarks.lab import (
    Lab,
    cpu_seconds,
    drop_page_cache,
    object_key,
    peak_memory_bytes,
    put_random_object,
    put_small_objects,
)
from forebay.benchmarks.program import run_rows
from forebay.benchmarks.report import Row

MIB = 1024 * 1024


@dataclass
class Plan:
    runs: int
    scale: float

    @property
    def large_bytes(self) -> int:
        return int(2048 * self.scale) * MIB

    @property
    def small_count(self) -> int:
        return int(20_000 * self.scale)

    small_bytes: int = 110_000

    @property
    def random_reads(self) -> int:
        return max(int(20_000 * self.scale), 1000)

    @property
    def million(self) -> int:
        return int(1_000_000 * self.scale)


def fill_juicefs(mount: Contender, source: Path) -> None:
    """The same content through JuiceFS, since its bucket holds a format of its own."""
    mount.mount()
    shutil.copytree(source, mount.mountpoint, dirs_exist_ok=True)
    mount.unmount()
    mount.forget_cache()


def large(plan: Plan, lab: Lab) -> list[Row]:
    """2 GiB from the SSD tier: sequential, random, CPU."""
    bucket = lab.s3.new_bucket("large")
    put_random_object(lab, bucket, "large.bin", plan.large_bytes)
    stage = lab.folder / "stage"
    stage.mkdir()
    lab.s3.client().download_file(bucket, "large.bin", str(stage / "large.bin"))
    juicefs = JuiceFS(lab, lab.s3.new_bucket("large-jfs"))
    fill_juicefs(juicefs, stage)
    contenders: list[Contender] = [Forebay(lab, bucket, "--ram-size", "0"), juicefs, Rclone(lab, bucket)]
    sequential = Row("sequential read of 2 GiB, SSD tier", "MB/s", against="juicefs", target=2)
    random = Row("random 4 KiB reads of it", "reads/s", against="juicefs", target=2)
    cpu = Row("CPU per GiB read sequentially", "s/GiB", higher_is_better=False, against="juicefs", target=1)
    for contender in contenders:
        contender.mount()
        lab.read("sequential", str(contender.mountpoint / "large.bin"))
    checksums: set[int] = set()
    for run in range(plan.runs):
        for contender in contenders:
            drop_page_cache()
            pids = contender.pids()
            before = cpu_seconds(pids)
            measured = lab.read("sequential", str(contender.mountpoint / "large.bin"))
            checksums.add(measured["checksum"])
            sequential.add(contender.name, measured["bytes"] / measured["seconds"] / 1e6)
            gib = measured["bytes"] / 2**30
            cpu.add(contender.name, (cpu_seconds(pids) - before + measured["cpu_s"]) / gib)
            drop_page_cache()
            measured = lab.read("random", str(contender.mountpoint / "large.bin"), str(plan.random_reads), str(run))
            random.add(contender.name, measured["operations"] / measured["seconds"])
        drop_page_cache()
        local = lab.read("sequential", str(stage / "large.bin"))
        sequential.add("local disk", local["bytes"] / local["seconds"] / 1e6)
        checksums.add(local["checksum"])
        drop_page_cache()
        local = lab.read("random", str(stage / "large.bin"), str(plan.random_reads), str(run))
        random.add("local disk", local["operations"] / local["seconds"])
    for contender in contenders:
        contender.unmount()
    if len(checksums) != 1:
        raise RuntimeError("the contenders did not read the same bytes")
    return [sequential, random, cpu]


def small(plan: Plan, lab: Lab) -> list[Row]:
    """20,000 files of 110 KB from the tier: page cache dropped, and again."""
    bucket = lab.s3.new_bucket("small")
    put_small_objects(lab, bucket, plan.small_count, plan.small_bytes)
    stage = lab.folder / "stage-small"
    lab.run(lab.peer("s5cmd"), "cp", f"s3://{bucket}/*", f"{stage}/", S3_ENDPOINT_URL=lab.s3.endpoint_url)
    juicefs = JuiceFS(lab, lab.s3.new_bucket("small-jfs"))
    fill_juicefs(juicefs, stage)
    contenders: list[Contender] = [Forebay(lab, bucket, "--ram-size", "0"), juicefs, Rclone(lab, bucket)]
    first = Row("20,000 files of 110 KB, page cache dropped", "files/s", against="juicefs", target=1.5)
    again = Row("the same again", "files/s", against="juicefs", target=1.5)
    for contender in contenders:
        contender.mount()
        lab.read("files", str(contender.mountpoint))
    checksums: set[int] = set()
    for _ in range(plan.runs):
        for contender in contenders:
            drop_page_cache()
            for row in (first, again):
                measured = lab.read("files", str(contender.mountpoint))
                row.add(contender.name, measured["operations"] / measured["seconds"])
                checksums.add(measured["checksum"])
        drop_page_cache()
        for row in (first, again):
            measured = lab.read("files", str(stage))
            row.add("local disk", measured["operations"] / measured["seconds"])
            checksums.add(measured["checksum"])
    for contender in contenders:
        contender.unmount()
    if len(checksums) != 1:
        raise RuntimeError("the contenders did not read the same bytes")
    return [first, again]


def cold(plan: Plan, lab: Lab) -> list[Row]:
    """One 2 GiB object never seen, through the mount, beside obstore fetching the same ranges into memory."""
    bucket = lab.s3.new_bucket("cold")
    put_random_object(lab, bucket, "large.bin", plan.large_bytes)
    stage = lab.folder / "stage-cold"
    stage.mkdir()
    lab.s3.client().download_file(bucket, "large.bin", str(stage / "large.bin"))
    juicefs = JuiceFS(lab, lab.s3.new_bucket("cold-jfs"))
    fill_juicefs(juicefs, stage)
    shutil.rmtree(stage)
    row = Row("2 GiB object never seen", "MB/s", against="obstore", target=0.8)
    contenders: list[Contender] = [Forebay(lab, bucket, "--ram-size", "0"), juicefs, Rclone(lab, bucket)]
    for _ in range(plan.runs):
        row.add("obstore", plan.large_bytes / asyncio.run(obstore_ranges(lab, bucket, plan.large_bytes)) / 1e6)
        for contender in contenders:
            contender.forget_cache()
            contender.mount()
            drop_page_cache()
            measured = lab.read("sequential", str(contender.mountpoint / "large.bin"))
            row.add(contender.name, measured["bytes"] / measured["seconds"] / 1e6)
            contender.unmount()
        drop_page_cache()
    return [row]


async def obstore_ranges(lab: Lab, bucket: str, size_bytes: int) -> float:
    """Seconds to fetch the object in 8 MiB ranges, 16 at once, into memory."""
    import obstore

    store = lab.obstore(bucket)
    drop_page_cache()
    slots = asyncio.Semaphore(16)

    async def fetch(start: int) -> int:
        async with slots:
            return len(
                await obstore.get_range_async(store, "large.bin", start=start, length=min(8 * MIB, size_bytes - start))
            )

    begin = time.perf_counter()
    fetched = sum(await asyncio.gather(*(fetch(start) for start in range(0, size_bytes, 8 * MIB))))
    seconds = time.perf_counter() - begin
    if fetched != size_bytes:
        raise RuntimeError(f"obstore fetched {fetched} of {size_bytes} bytes")
    return seconds


def prefetch(plan: Plan, lab: Lab) -> list[Row]:
    """`forebay prefetch` of 20,000 objects of 110 KB beside `s5cmd cp` into a folder."""
    bucket = lab.s3.new_bucket("prefetch")
    put_small_objects(lab, bucket, plan.small_count, plan.small_bytes)
    row = Row("prefetch of 20,000 objects of 110 KB", "objects/s", against="s5cmd", target=0.8)
    for _ in range(plan.runs):
        folder = lab.folder / "s5cmd"
        drop_page_cache()
        begin = time.perf_counter()
        lab.run(lab.peer("s5cmd"), "cp", f"s3://{bucket}/*", f"{folder}/", S3_ENDPOINT_URL=lab.s3.endpoint_url)
        row.add("s5cmd", plan.small_count / (time.perf_counter() - begin))
        shutil.rmtree(folder)
        cache = lab.folder / "prefetch-cache"
        drop_page_cache()
        begin = time.perf_counter()
        lab.run(
            sys.executable, "-m", "forebay.cli", "prefetch", f"s3://{bucket}", "--cache-dir", str(cache),
            "--cache-size", "20GiB", "--ram-size", "0", "--free-space-ratio", "0.01", "--json",
        )  # fmt: skip
        row.add("forebay", plan.small_count / (time.perf_counter() - begin))
        shutil.rmtree(cache)
    return [row]


def million(plan: Plan, lab: Lab) -> list[Row]:
    """A bucket of a million keys: `find` over it, and mounting onto a cache folder that holds all of it."""
    bucket = lab.s3.new_bucket("million")
    put_small_objects(lab, bucket, plan.million, 600, per_folder=10_000)
    memory = Row("find over 1,000,000 keys: memory of the mount", "MB", higher_is_better=False, limit=400)
    rate = Row("find over 1,000,000 keys", "entries/s", against="listing by s5cmd")
    again = Row("restart onto 1,000,000 cached small objects", "s", higher_is_better=False, limit=3)
    contender = Forebay(lab, bucket, "--ram-size", "0")
    for _ in range(min(plan.runs, 2)):
        drop_page_cache()
        begin = time.perf_counter()
        lab.run(lab.peer("s5cmd"), "ls", f"s3://{bucket}/*", S3_ENDPOINT_URL=lab.s3.endpoint_url)
        rate.add("listing by s5cmd", plan.million / (time.perf_counter() - begin))
        contender.mount()
        drop_page_cache()
        measured = lab.read("find", str(contender.mountpoint))
        if measured["operations"] < plan.million:
            raise RuntimeError(f"find saw {measured['operations']} entries")
        rate.add("forebay", measured["operations"] / measured["seconds"])
        memory.add("forebay", peak_memory_bytes(contender.pids()) / 1e6)
        contender.unmount()
    lab.run(
        sys.executable, "-m", "forebay.cli", "prefetch", f"s3://{bucket}", "--cache-dir", str(contender.cache),
        "--cache-size", "20GiB", "--ram-size", "0", "--free-space-ratio", "0.01", "--json",
    )  # fmt: skip
    for _ in range(plan.runs):
        drop_page_cache()
        begin = time.perf_counter()
        contender.mount()
        (contender.mountpoint / object_key(0, 10_000)).read_bytes()
        again.add("forebay", time.perf_counter() - begin)
        contender.unmount()
    return [memory, rate, again]


ROWS: dict[str, Callable[[Plan, Lab], list[Row]]] = {
    "large": large,
    "small": small,
    "cold": cold,
    "prefetch": prefetch,
    "million": million,
}


def main() -> None:
    run_rows(__doc__, ROWS, Plan, title="Reading through the mount", name="mount")


if __name__ == "__main__":
    main()
