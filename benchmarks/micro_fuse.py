"""What the mount itself costs: a view and a cache that do next to nothing over a folder on tmpfs, read through a mount.

Each line is one workload on a fresh mount, so the kernel's page cache is cold without dropping everybody's. Rates are of
one client thread; CPU is that of the serving process, per GiB or per operation.

    python benchmarks/micro_fuse.py [--transport lane|pyfuse3] [--size-mib 1024] [--files 4000] [--only random] [--profile OUT]
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.fuse_mount.mount_table import mounted_at
from forebay.fuse_mount.mountpoint import detach
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.session import mount
from forebay.fuse_mount.view import ROOT_INO, Absent, DirEntry, Kind, Node
from forebay.tiers.understore import Buffer
from forebay.tiers.version import ObjectVersion

READER = Path(__file__).with_name("reader.py")
SMALL_FILE_BYTES = 110_000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class FolderView:
    """A local folder as a view, looked at once, at the start."""

    negative_ttl_s = float("inf")

    def __init__(self, folder: Path) -> None:
        self.nodes = {ROOT_INO: Node(ROOT_INO, Kind.DIRECTORY, 0, 0, float("inf"))}
        self.children: dict[int, dict[bytes, Node]] = {ROOT_INO: {}}
        self.versions: dict[int, ObjectVersion] = {}
        self._scan(folder, ROOT_INO)

    def _scan(self, folder: Path, ino: int) -> None:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            kind = Kind.DIRECTORY if entry.is_dir() else Kind.FILE
            size = entry.stat().st_size if kind == Kind.FILE else 0
            node = Node(len(self.nodes) + 1, kind, size, 0, float("inf"))
            self.nodes[node.ino] = node
            self.children[ino][os.fsencode(entry.name)] = node
            if kind == Kind.DIRECTORY:
                self.children[node.ino] = {}
                self._scan(Path(entry.path), node.ino)
            else:
                self.versions[node.ino] = ObjectVersion("file://", entry.path, "1", size)

    def peek(self, parent: int, name: bytes) -> Node | Absent | None:
        return self.children[parent].get(name, Absent.ABSENT)

    async def lookup(self, parent: int, name: bytes) -> Node | Absent:
        return self.children[parent].get(name, Absent.ABSENT)

    def node(self, ino: int) -> Node:
        return self.nodes[ino]

    def version(self, ino: int) -> ObjectVersion:
        return self.versions[ino]

    def path(self, ino: int) -> bytes:
        return str(ino).encode()

    async def open_directory(self, ino: int) -> "FolderListing":
        return FolderListing(list(self.children[ino].items()))

    def xattrs(self, ino: int) -> Mapping[str, bytes]:
        return {}

    def forget(self, ino: int, count: int) -> None:
        pass


@dataclass
class FolderListing:
    entries: list[tuple[bytes, Node]]

    def read(self, cookie: int, *, plus: bool) -> Iterator[DirEntry]:
        for index in range(cookie, len(self.entries)):
            name, node = self.entries[index]
            yield DirEntry(name, node, index + 1)


class FolderCache:
    """Reads the file that a version names; the descriptors of the last thousand are kept."""

    def __init__(self) -> None:
        self.descriptors: dict[str, int] = {}

    def read_cached(self, version: ObjectVersion, offset: int, size: int, *, reader: int) -> Buffer | None:
        descriptor = self.descriptors.get(version.key)
        if descriptor is None:
            if len(self.descriptors) >= 1000:
                os.close(self.descriptors.pop(next(iter(self.descriptors))))
            descriptor = self.descriptors[version.key] = os.open(version.key, os.O_RDONLY)
        return os.pread(descriptor, size, offset)

    async def read(
        self, version: ObjectVersion, offset: int, size: int, *, reader: int, timeout_s: float | None = None
    ) -> Buffer:
        data = self.read_cached(version, offset, size, reader=reader)
        assert data is not None
        return data

    def forget_reader(self, reader: int) -> None:
        pass


async def serve(folder: Path, mountpoint: Path, options: MountOptions) -> None:
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with await mount(FolderView(folder), FolderCache(), mountpoint, source="bench", options=options):
        print("ready", flush=True)
        await asked.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def read(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(READER), *arguments], capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def workloads(arguments: argparse.Namespace, mountpoint: Path) -> dict[str, list[list[str]]]:
    """Name -> reader command lines, run one after the other on one mount; the last one is reported as `again`."""
    big = str(mountpoint / "big")
    return {
        "sequential": [["sequential", big]],
        "random 4 KiB": [["random", big, "40000", "1"]],
        "110 KB files": [["files", str(mountpoint / "small")]] * 2,
        "list": [["list", str(mountpoint / "many")]],
        "find": [["find", str(mountpoint / "many")]],
        "stat": [["stat", str(mountpoint / "many"), "20000", "1"]],
    }


def report(name: str, measured: dict[str, Any], server_cpu_s: float) -> None:
    seconds, size, count = measured["seconds"], measured["bytes"], measured["operations"]
    per_gib = f"{server_cpu_s / (size / 2**30):.2f} s CPU/GiB" if size > 2**28 else ""
    rate = f"{size / seconds / 1e6:8.0f} MB/s" if size else " " * 13
    print(
        f"{name:22} {count / seconds:10,.0f}/s {rate}  {server_cpu_s / count * 1e6:8.1f} us CPU/op  {per_gib}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=["lane", "pyfuse3"], default="lane")
    parser.add_argument("--threads", type=int, default=MountOptions.lane_threads)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--names", type=int, default=50_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", type=Path, help="record the server with py-spy into this file")
    parser.add_argument("--read-ahead-kib", type=int, default=MountOptions.read_ahead_bytes // 1024)
    parser.add_argument("--serve", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = MountOptions(
        transport=arguments.transport, lane_threads=arguments.threads, read_ahead_bytes=arguments.read_ahead_kib * 1024
    )
    if arguments.serve:
        folder, where = arguments.serve
        asyncio.run(serve(folder, where, options))
        return
    base = Path(tempfile.mkdtemp(prefix="forebay-micro-", dir="/dev/shm"))
    mountpoint = base / "mnt"
    mountpoint.mkdir()
    try:
        fill(base / "data", arguments)
        for name, commands in workloads(arguments, mountpoint).items():
            if arguments.only in name:
                measure(name, commands, base / "data", mountpoint, arguments)
    finally:
        if mounted_at(str(mountpoint)):
            detach(mountpoint, lazy=True)
        shutil.rmtree(base)


def fill(folder: Path, arguments: argparse.Namespace) -> None:
    (folder / "small").mkdir(parents=True)
    (folder / "many").mkdir()
    piece = os.urandom(1 << 20)
    with (folder / "big").open("wb") as file:
        for _ in range(arguments.size_mib):
            file.write(piece)
    for index in range(arguments.files):
        (folder / "small" / f"{index:05}").write_bytes(piece[index : index + SMALL_FILE_BYTES])
    for index in range(arguments.names):
        (folder / "many" / f"name-{index:06}").touch()


def measure(
    name: str, commands: list[list[str]], folder: Path, mountpoint: Path, arguments: argparse.Namespace
) -> None:
    command = [sys.executable, __file__, "--serve", str(folder), str(mountpoint), "--transport", arguments.transport]
    command += ["--threads", str(arguments.threads), "--read-ahead-kib", str(arguments.read_ahead_kib)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    recorder = None
    try:
        if server.stdout.readline() != "ready\n":
            sys.exit("the mount did not come up")
        if arguments.profile:
            spy = [
                "py-spy",
                "record",
                "--native",
                "--gil",
                "-r",
                "500",
                "-f",
                "raw",
                "-o",
                str(arguments.profile),
                "-p",
                str(server.pid),
            ]
            recorder = subprocess.Popen(spy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for index, one in enumerate(commands):
            before = cpu_s(server.pid)
            measured = read(*one)
            report(name + (", again" if index else ""), measured, cpu_s(server.pid) - before)
    finally:
        if recorder is not None:
            recorder.send_signal(signal.SIGINT)
            recorder.wait()
        server.terminate()
        server.wait()
        server.stdout.close()


if __name__ == "__main__":
    main()
