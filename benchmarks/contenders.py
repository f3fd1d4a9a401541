"""The file systems that are compared, each mounted by its own command line with the same cache size.

Every peer runs with the settings that its own documentation recommends for read-mostly data (long attribute
caches, full file cache), so that what is compared is the design and not a default.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from forebay.benchmarks.lab import Lab, process_tree, wait_for

CACHE_MIB = 20_480


class Contender(Protocol):
    """One mount of one bucket."""

    name: str
    mountpoint: Path

    def mount(self) -> None: ...
    def unmount(self) -> None: ...
    def forget_cache(self) -> None:
        """Empty the local cache (while unmounted)."""
        ...

    def pids(self) -> list[int]:
        """The processes behind the mount."""
        ...


class _Mount:
    def __init__(self, name: str, lab: Lab, bucket: str) -> None:
        self.name = name
        self.lab = lab
        self.bucket = bucket
        base = lab.folder / f"{name}-{bucket}"
        self.mountpoint = base / "mnt"
        self.cache = base / "cache"
        self.log = base / "log"
        for folder in (self.mountpoint, self.cache):
            folder.mkdir(parents=True, exist_ok=True)

    def forget_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir()

    def serves(self) -> bool:
        return os.path.ismount(self.mountpoint)


class Forebay(_Mount):
    """Read-only unless `writable`; then its write tier is a folder beside the cache."""

    def __init__(self, lab: Lab, bucket: str, *options: str, writable: bool = False) -> None:
        super().__init__("forebay", lab, bucket)
        self.options = options
        self.mode = ("--write-tier", str(self.cache.with_name("write"))) if writable else ("--read-only",)

    def mount(self) -> None:
        self.lab.run(
            sys.executable, "-m", "forebay.cli", "mount", f"s3://{self.bucket}", str(self.mountpoint), *self.mode,
            "--cache-dir", str(self.cache), "--cache-size", f"{CACHE_MIB}MiB", "--free-space-ratio", "0.01",
            "--metadata-ttl", "indefinite", *self.options,
        )  # fmt: skip

    def unmount(self) -> None:
        self.lab.run(sys.executable, "-m", "forebay.cli", "umount", str(self.mountpoint))

    def settled(self) -> bool:
        """Whether nothing is dirty."""
        written = self._status()["write"]
        return not (written["dirty_files"] or written["doomed"])

    def pids(self) -> list[int]:
        return process_tree(int(self._status()["pid"]))

    def _status(self) -> dict[str, Any]:
        wanted = str(self.mountpoint)
        for line in self.lab.run(sys.executable, "-m", "forebay.cli", "status", "--json").stdout.splitlines():
            for mount in json.loads(line).get("mounts", []):
                if mount.get("mountpoint") == wanted:
                    found: dict[str, Any] = mount
                    return found
        raise RuntimeError(f"forebay status does not know {wanted}")


class JuiceFS(_Mount):
    """JuiceFS keeps objects in a format of its own, so its bucket is filled through it (`fill`)."""

    def __init__(self, lab: Lab, bucket: str, *options: str) -> None:
        super().__init__("juicefs", lab, bucket)
        self.options = options
        self.meta = f"sqlite3://{self.mountpoint.parent}/meta.db"
        lab.run(
            lab.peer("juicefs"), "format", "--storage", "s3", "--bucket", f"{lab.s3.endpoint_url}/{bucket}",
            "--access-key", lab.s3.access_key, "--secret-key", lab.s3.secret_key, "--trash-days", "0",
            self.meta, "bench",
        )  # fmt: skip

    def mount(self) -> None:
        self.lab.run(
            self.lab.peer("juicefs"), "mount", "-d", "--no-usage-report", "--cache-dir", str(self.cache),
            "--cache-size", str(CACHE_MIB), "--free-space-ratio", "0.01", "--attr-cache", "3600",
            "--entry-cache", "3600", "--dir-entry-cache", "3600", "--open-cache", "3600", "--hide-internal",
            "--log", str(self.log), *self.options, self.meta, str(self.mountpoint),
        )  # fmt: skip
        wait_for(self.serves, 30, "juicefs mount")

    def unmount(self) -> None:
        self.lab.run(self.lab.peer("juicefs"), "umount", "--flush", str(self.mountpoint))

    def settled(self) -> bool:
        """Whether no staged block waits for its upload (with --writeback)."""
        return not any(names for staging in self.cache.glob("*/rawstaging") for _, _, names in os.walk(staging))

    def pids(self) -> list[int]:
        """By its cache folder: JuiceFS rewrites its command line as one string without its end, the mountpoint."""
        pids = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    command = Path("/proc", entry, "cmdline").read_bytes()
                except OSError:
                    continue
                if b"juicefs" in command and os.fsencode(self.cache) in command:
                    pids.append(int(entry))
        if not pids:
            raise RuntimeError(f"no JuiceFS process with cache {self.cache}: its CPU time would count as 0")
        return pids


class Rclone(_Mount):
    def __init__(self, lab: Lab, bucket: str, *options: str) -> None:
        super().__init__("rclone", lab, bucket)
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.lab.peer("rclone"), "mount", f":s3,provider=Other,env_auth=true:{self.bucket}",
                    str(self.mountpoint), "--config", "/dev/null", "--cache-dir", str(self.cache),
                    "--vfs-cache-mode", "full", "--vfs-cache-max-size", f"{CACHE_MIB}M", "--vfs-cache-max-age", "24h",
                    "--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "8M", "--vfs-fast-fingerprint",
                    "--dir-cache-time", "24h", "--attr-timeout", "1h", "--no-modtime", *self.options,
                ],
                env={**self.lab.environment, "RCLONE_S3_ENDPOINT": self.lab.s3.endpoint_url},
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        wait_for(self.serves, 30, "rclone mount")

    def unmount(self) -> None:
        assert self.process is not None
        subprocess.run(["fusermount3", "-u", str(self.mountpoint)], check=True)
        self.process.wait(30)

    def pids(self) -> list[int]:
        assert self.process is not None
        return [self.process.pid]
