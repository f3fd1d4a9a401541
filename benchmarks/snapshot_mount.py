"""Versions as folders, beside JuiceFS; and making and checking a version of a folder, beside DVC.

    python -m forebay.benchmarks.snapshot_mount                    # 10 M entries; JuiceFS with 200,000 files, DVC with 100,000
    python -m forebay.benchmarks.snapshot_mount --scale 0.02 --rows mount,list

mount   a version of 10 M entries: first mount (the tree index is built), later ones, memory of the process behind it
list    `ls -f` of a folder of 1 M entries in it, and `stat` of random paths; JuiceFS gets fewer files, since it takes
        minutes to make them, and is as fast with few as it gets
dvc     the same folder of 100,000 files: `dvc add` + `dvc status`, and `snapshot create` + `snapshot verify`
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from forebay.benchmarks.contenders import JuiceFS
from forebay.benchmarks.lab import Lab, drop_page_cache, peak_memory_bytes, process_tree
from forebay.benchmarks.manifests import manifest_lines
from forebay.benchmarks.program import run_rows
from forebay.benchmarks.report import Row

DVC = "dvc==3.67.1"
FLAT_FOLDER = "flat"


class Plan:
    """Sizes of a run."""

    def __init__(self, runs: int, scale: float) -> None:
        self.runs = runs
        self.entries = int(10_000_000 * scale)
        self.flat = int(1_000_000 * scale)
        self.juicefs_files = int(200_000 * min(1.0, scale * 10))
        self.dvc_files = int(100_000 * min(1.0, scale * 10))
        self.stats = 50_000


class SnapshotMount:
    """`forebay mount big@v1` of the lab's metadata store."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.meta = f"sqlite:///{lab.folder}/meta.db"
        self.mountpoint = lab.folder / "snapshot"
        self.cache = lab.folder / "snapshot-cache"
        self.mountpoint.mkdir(exist_ok=True)

    def forebay(self, *arguments: str) -> str:
        return self.lab.run(sys.executable, "-m", "forebay.cli", *arguments, FOREBAY_META_URL=self.meta).stdout

    def make(self, entries: int, flat: int) -> None:
        """The version: the synthetic images, and one folder with very many files. Their bucket exists and is empty."""
        self.lab.s3.client().create_bucket(Bucket="data")
        manifest = self.lab.folder / "manifest.jsonl"
        with manifest.open("w") as file:
            file.writelines(flat_lines(flat))
            file.writelines(manifest_lines(range(max(entries - flat, 0))))
        self.forebay("dataset", "import", "big", str(manifest))
        manifest.unlink()

    def mount(self) -> float:
        """Seconds until it serves."""
        begin = time.perf_counter()
        self.forebay("mount", "big@v1", str(self.mountpoint), "--cache-dir", str(self.cache), "--ram-size", "0")
        return time.perf_counter() - begin

    def unmount(self) -> None:
        self.forebay("umount", str(self.mountpoint))

    def pids(self) -> list[int]:
        for mount in json.loads(self.forebay("status", "--json"))["mounts"]:
            if mount["mountpoint"] == str(self.mountpoint):
                return process_tree(int(mount["pid"]))
        raise RuntimeError(f"forebay status does not know {self.mountpoint}")


def flat_lines(count: int) -> Iterator[str]:
    """Manifest lines of files in one folder, sorted before those of `manifest_lines`."""
    for number in range(count):
        yield (
            f'{{"url":"s3://data/{FLAT_FOLDER}/img-{number:09}.jpg","size":{100_000 + number % 1000},'
            f'"etag":"{number:032x}","labels":{{"class":"class-{number % 100:05}"}}}}\n'
        )


def mount(plan: Plan, lab: Lab) -> list[Row]:
    """Time to mount, and memory."""
    snapshot = SnapshotMount(lab)
    snapshot.make(plan.entries, plan.flat)
    first = Row(f"mount of {plan.entries:,} entries, tree to be built", "s", limit=60, higher_is_better=False)
    later = Row(f"mount of {plan.entries:,} entries, tree built", "s", limit=2, higher_is_better=False)
    memory = Row("memory of the mount, anonymous (heap)", "MB", limit=200, higher_is_better=False)
    first.add("forebay", snapshot.mount())
    snapshot.unmount()
    for _ in range(plan.runs):
        later.add("forebay", snapshot.mount())
        lab.read("list", str(snapshot.mountpoint / FLAT_FOLDER))
        memory.add("forebay", heap_bytes(snapshot.pids()) / 1e6)
        memory.note = f"{peak_memory_bytes(snapshot.pids()) / 1e6:,.0f} MB with mapped files"
        snapshot.unmount()
    return [first, later, memory]


def heap_bytes(pids: list[int]) -> int:
    """Memory that belongs to the processes alone: resident, without mapped files (which the kernel can drop)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def list_and_stat(plan: Plan, lab: Lab) -> list[Row]:
    """`ls -f` and `stat`, cold names: each sample on a fresh mount."""
    snapshot = SnapshotMount(lab)
    snapshot.make(plan.flat, plan.flat)
    snapshot.mount()
    snapshot.unmount()
    juicefs = JuiceFS(lab, lab.s3.new_bucket("juicefs"))
    juicefs.mount()
    folder = juicefs.mountpoint / FLAT_FOLDER
    folder.mkdir()
    for number in range(plan.juicefs_files):
        (folder / f"img-{number:09}.jpg").touch()
    juicefs.unmount()
    ls = Row(f"ls -f of a folder of {plan.flat:,} entries", "entries/s", against="juicefs", target=1.0)
    ls.note = f"wanted: 200,000 entries/s; JuiceFS: {plan.juicefs_files:,} entries"
    stat = Row("stat of random paths", "1/s", against="juicefs", target=1.0)
    sides: list[tuple[str, Callable[[], object], Callable[[], None], Path]] = [
        ("forebay", snapshot.mount, snapshot.unmount, snapshot.mountpoint / FLAT_FOLDER),
        ("juicefs", juicefs.mount, juicefs.unmount, folder),
    ]
    for _ in range(plan.runs):
        for name, mounted, unmounted, path in sides:
            mounted()
            drop_page_cache()
            begin = time.perf_counter()
            names = lab.run("ls", "-f", str(path)).stdout.count("\n")
            ls.add(name, names / (time.perf_counter() - begin))
            unmounted()
            mounted()
            drop_page_cache()
            wanted = [f"img-{(number * 7919) % (names - 2):09}.jpg" for number in range(min(plan.stats, names - 2))]
            stat.add(name, stat_rate(lab, path, wanted))
            unmounted()
    return [ls, stat]


def stat_rate(lab: Lab, folder: Path, names: list[str]) -> float:
    """Calls per second of a process that knows the paths and looks at each once."""
    listing = lab.folder / "names.txt"
    listing.write_text("\n".join(names))
    code = (
        "import os, sys, time\n"
        "paths = [sys.argv[1] + '/' + name for name in open(sys.argv[2]).read().split()]\n"
        "begin = time.perf_counter()\n"
        "for path in paths: os.stat(path)\n"
        "print(len(paths) / (time.perf_counter() - begin))\n"
    )
    return float(lab.run(sys.executable, "-c", code, str(folder), str(listing)).stdout)


def dvc(plan: Plan, lab: Lab) -> list[Row]:
    """A version of a folder, and whether the folder still is that version."""
    tools = install_dvc()
    folder = lab.folder / "dvc" / "data"
    for number in range(plan.dvc_files):
        path = folder / f"{number // 1000:04}" / f"{number:07}.bin"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(number.to_bytes(8, "little") * 256)
    row = Row(
        f"version of {plan.dvc_files:,} files, and check of it", "s", against="dvc", target=10, higher_is_better=False
    )
    quiet = {"cwd": folder.parent, "env": {**os.environ, "DVC_NO_ANALYTICS": "1"}, "stdout": subprocess.DEVNULL}
    subprocess.run([tools / "dvc", "init", "--no-scm", "-q"], check=True, **quiet)  # type: ignore[call-overload]
    drop_page_cache()
    begin = time.perf_counter()
    subprocess.run([tools / "dvc", "add", "-q", "data"], check=True, **quiet)  # type: ignore[call-overload]
    added = time.perf_counter()
    subprocess.run([tools / "dvc", "status", "-q"], check=True, **quiet)  # type: ignore[call-overload]
    checked = time.perf_counter()
    row.add("dvc", checked - begin)
    snapshot = SnapshotMount(lab)
    drop_page_cache()
    begin_ours = time.perf_counter()
    snapshot.forebay("snapshot", "create", "files", "--from", folder.as_uri())
    made = time.perf_counter()
    snapshot.forebay("snapshot", "verify", "files")
    row.add("forebay", time.perf_counter() - begin_ours)
    row.note = (
        f"dvc: add {added - begin:.1f}, status {checked - added:.1f} (it reads and copies every file);"
        f" forebay: create {made - begin_ours:.1f}, verify {time.perf_counter() - made:.1f}"
    )
    return [row]


def install_dvc() -> Path:
    """DVC from PyPI in an environment of its own that later runs use again; the folder of its programs."""
    venv = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "forebay-bench-dvc"
    stamp = venv / "installed.txt"
    if not stamp.exists() or stamp.read_text() != DVC:
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", DVC], check=True)
        stamp.write_text(DVC)
    return venv / "bin"


ROWS: dict[str, Callable[[Plan, Lab], list[Row]]] = {"mount": mount, "list": list_and_stat, "dvc": dvc}


def main() -> None:
    run_rows(__doc__, ROWS, Plan, title="Versions as folders", name="snapshot_mount", runs=3)


if __name__ == "__main__":
    main()
