"""How fast versions are made, changed, compared and chosen from, on SQLite or a real MongoDB.

    python -m forebay.benchmarks.snapshots --count 1000000 [--store mongo|sqlite|URL] [--json FILE]

Prints each figure beside its target. The manifest is synthetic (manifests.py) and lies in a temporary folder; MongoDB, unless a
URL is given, is a real mongod started for the run. Every step runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import contextlib
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forebay.benchmarks.manifests import manifest_lines, write_manifest
from forebay.lean_process import leave_out_pandas
from forebay.snapshots import DiffSummary, ManifestOptions, Selection, open_repository
from forebay.tests.support.servers import mongo_server

CHANGED_FOLDERS = 4


@dataclass
class Figure:
    """One measured step. `goal` is the wanted value in words, `ok` whether it was reached (None: no goal)."""

    name: str
    seconds: float
    entries: int
    peak_mib: float
    stored_mib: float
    goal: str
    ok: bool | None

    @property
    def rate(self) -> float:
        return self.entries / self.seconds if self.seconds else 0.0


def _child(step: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], out: Any) -> None:
    leave_out_pandas()  # as the programs do
    started = time.perf_counter()
    result = step(*arguments)
    result["seconds"] = result.get("seconds") or time.perf_counter() - started
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.send(result)


def measured(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of the step, run in a fresh process, with `seconds` and `peak_mib`."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(step, arguments, sender))
    process.start()
    # With our end closed, a child that dies shows as the end of the pipe instead of a wait without end.
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{step.__name__} failed (exit {process.exitcode})") from None
    process.join()
    return result


def do_import(url: str, name: str, manifest: Path, spool: Path) -> dict[str, Any]:
    with open_repository(url) as repo:
        repo.ensure_dataset(name)
        started = time.perf_counter()
        made = repo.import_manifest(name, manifest, options=ManifestOptions(spool_folder=spool)).made
        return {
            "seconds": time.perf_counter() - started,
            "entries": made.snapshot.commit.entry_count,
            "bytes": made.new_bytes,
        }


def do_add(url: str, manifest: Path) -> dict[str, Any]:
    with open_repository(url) as repo:
        started = time.perf_counter()
        edited, _ = repo.add("bench", manifest)
        return {
            "seconds": time.perf_counter() - started,
            "entries": edited.counts.added + edited.counts.replaced,
            "bytes": edited.made.new_bytes,
        }


def do_diff(url: str) -> dict[str, Any]:
    with open_repository(url) as repo:
        summary = DiffSummary()
        started = time.perf_counter()
        for batch in repo.diff("bench@v1", "bench@v2"):
            summary.add(batch)
        return {"seconds": time.perf_counter() - started, "entries": sum(summary.counts.values()), "bytes": 0}


def do_select(url: str, where: str, branch: str) -> dict[str, Any]:
    with open_repository(url) as repo:
        total = repo.resolve("bench").commit.entry_count
        started = time.perf_counter()
        made = repo.select("bench", Selection(where=where), branch=branch)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "entries": total,
            "bytes": made.new_bytes,
            "chosen": made.snapshot.commit.entry_count,
        }


def do_scan(url: str) -> dict[str, Any]:
    with open_repository(url) as repo:
        started = time.perf_counter()
        entries = sum(batch.num_rows for batch in repo.resolve("bench").batches())
        return {"seconds": time.perf_counter() - started, "entries": entries, "bytes": 0}


def run(url: str, count: int, folder: Path) -> list[Figure]:
    figures: list[Figure] = []

    def note(name: str, result: dict[str, Any], goal: str, ok: bool | None) -> None:
        figure = Figure(
            name, result["seconds"], result["entries"], result["peak_mib"], result["bytes"] / (1 << 20), goal, ok
        )
        figures.append(figure)
        mark = {True: "yes", False: "NO", None: ""}[ok]
        print(
            f"{name:34} {figure.seconds:9.2f} s {figure.rate:12,.0f} entries/s {figure.peak_mib:7,.0f} MiB peak "
            f"{figure.stored_mib:8.1f} MiB stored   {goal} {mark}",
            flush=True,
        )

    ordered = folder / "ordered.jsonl"
    write_manifest(ordered, range(count))
    imported = measured(do_import, url, "bench", ordered, folder)
    ok = imported["entries"] / imported["seconds"] >= 100_000 and imported["peak_mib"] < 2048
    note("import, sorted", imported, ">= 100,000/s, < 2 GiB", ok)
    shuffled = folder / "shuffled.jsonl"
    _shuffle(ordered, shuffled)
    again = measured(do_import, url, "shuffled", shuffled, folder)
    ok = again["entries"] / again["seconds"] >= 100_000 and again["peak_mib"] < 2048
    note("import, shuffled (same pages)", again, ">= 100,000/s, < 2 GiB", ok)
    shuffled.unlink()
    ordered.unlink()
    # One percent of the entries get new contents, in a few places of neighbouring folders.
    change = folder / "change.jsonl"
    share = max(count // 100 // CHANGED_FOLDERS, 1)
    starts = [count // CHANGED_FOLDERS * i + count // 10 for i in range(CHANGED_FOLDERS)]
    with change.open("w") as file:
        for start in starts:
            file.writelines(manifest_lines(range(start, min(start + share, count)), revision=1))
    added = measured(do_add, url, change)
    ok = added["seconds"] < imported["seconds"] / 20 and added["bytes"] < imported["bytes"] / 20
    note("commit of 1 %, clustered", added, f"< {imported['seconds'] / 20:.2f} s", ok)
    diff = measured(do_diff, url)
    note("diff of those two", diff, "< 3 s", diff["seconds"] < 3)
    for name, where, branch in [
        ("select one class (zones)", 'label.class == "class-00007"', "one"),
        ("select 10 % scattered", "label.quality == 3", "scattered"),
        ("select 50 % by size", "size > 115000", "half"),
    ]:
        chosen = measured(do_select, url, where, branch)
        note(name, chosen, ">= 1,000,000/s", chosen["entries"] / chosen["seconds"] >= 1_000_000)
    note("read all entries", measured(do_scan, url), "", None)
    return figures


def _shuffle(source: Path, target: Path) -> None:
    """Shuffle the lines of a file that may be larger than memory allows as objects: blocks of lines, dealt out at random."""
    chance = random.Random(1)
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(tempfile.TemporaryFile("w+b", dir=target.parent)) for _ in range(32)]
        with source.open("rb") as file:
            for line in file:
                parts[chance.randrange(32)].write(line)
        with target.open("wb") as out:
            for part in parts:
                part.seek(0)
                lines = part.readlines()
                chance.shuffle(lines)
                out.writelines(lines)


@contextlib.contextmanager
def store_url(store: str, folder: Path) -> Iterator[str]:
    if store == "sqlite":
        yield f"sqlite:///{folder / 'meta.db'}"
    elif store == "mongo":
        with mongo_server(folder / "mongod") as server:
            yield server.url
    else:
        yield store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--store", default="mongo", help="mongo, sqlite, or the URL of an empty store")
    parser.add_argument("--folder", type=Path, help="where to put manifests and stores (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="forebay-bench-", dir=arguments.folder))
    try:
        with store_url(arguments.store, folder) as url:
            figures = run(url, arguments.count, folder)
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
