"""A real Ceph on one machine: one monitor, one manager and two OSDs on loopback, in a folder.

    with ceph_cluster(folder) as ceph:
        ceph.create_pool("p")
        ceph.kill_osd(0); ceph.start_osd(0)
        ceph.pause_mon(); ceph.resume_mon()

Debian's packages are needed (`ceph-mon ceph-mgr ceph-osd ceph-common python3-rados`); it is up in about 8 s. Two replicas on
two OSDs with `min_size` 1, so that one OSD may be lost.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.tests.support.servers import free_ports, unavailable

TOOLS = ("ceph", "ceph-authtool", "ceph-mgr", "ceph-mon", "ceph-osd", "monmaptool")
OSDS = 2
COMMAND_TIMEOUT_S = 120
READY_TIMEOUT_S = 240.0


@dataclass
class CephCluster:
    folder: Path
    conf: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def keyring(self) -> Path:
        return self.folder / "client.admin.keyring"

    def ceph(self, *words: str, stdin: bytes | None = None) -> str:
        """Run `ceph ...` and return what it prints."""
        done = subprocess.run(
            ["ceph", "-c", str(self.conf), "--connect-timeout", "20", *words],
            input=stdin, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"ceph {' '.join(words)}: {done.stderr.decode(errors='replace')[-1000:]}")
        return done.stdout.decode()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ceph("status", "--format", "json"))
        return found

    def create_pool(self, name: str) -> None:
        self.ceph("osd", "pool", "create", name, "8")
        self.ceph("osd", "pool", "application", "enable", name, "forebay")

    def start(self, daemon: str, identity: str) -> None:
        name = f"{daemon}.{identity}"
        log = (self.folder / f"{name}.out").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [f"ceph-{daemon}", "-f", "-c", str(self.conf), "-i", identity],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def stop(self, name: str, *, kill: bool = False) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_osd(self, number: int) -> None:
        self.stop(f"osd.{number}", kill=True)

    def start_osd(self, number: int) -> None:
        self.start("osd", str(number))

    def pause_mon(self) -> None:
        """The monitor does not answer any more, though it is there."""
        self.processes["mon.a"].send_signal(signal.SIGSTOP)

    def resume_mon(self) -> None:
        self.processes["mon.a"].send_signal(signal.SIGCONT)

    def pause_osds(self) -> None:
        """No OSD answers any more, though all are there."""
        for number in range(OSDS):
            self.processes[f"osd.{number}"].send_signal(signal.SIGSTOP)

    def resume_osds(self) -> None:
        for number in range(OSDS):
            self.processes[f"osd.{number}"].send_signal(signal.SIGCONT)

    def wait_for_osds(self, count: int) -> None:
        """Until so many OSDs are up, and all placement groups active."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            found = self.status()
            groups = found["pgmap"]
            active = sum(one["count"] for one in groups.get("pgs_by_state", []) if "active" in one["state_name"])
            if found["osdmap"]["num_up_osds"] == count and active == groups["num_pgs"]:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ceph did not settle with {count} OSDs: {json.dumps(found)[:1000]}")
            time.sleep(0.2)


@contextlib.contextmanager
def ceph_cluster(folder: Path) -> Iterator[CephCluster]:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            unavailable(f"{tool} is not installed (Debian packages ceph-mon ceph-mgr ceph-osd ceph-common)")
    folder.mkdir(parents=True, exist_ok=True)
    cluster = CephCluster(folder, folder / "ceph.conf")
    try:
        _make(cluster)
        yield cluster
    finally:
        for name in list(cluster.processes):
            with contextlib.suppress(ProcessLookupError):
                cluster.processes[name].send_signal(signal.SIGCONT)
            cluster.stop(name, kill=not name.startswith("mon"))


def _make(cluster: CephCluster) -> None:
    folder = cluster.folder
    (port,) = free_ports(1)
    fsid = str(uuid.uuid4())
    cluster.conf.write_text(f"""
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
mon initial members = a
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = {OSDS}
osd pool default min size = 1
# By itself the manager splits the groups of a young pool. Those never came up when the OSDs were stopped at that moment.
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = bluestore
bluestore block size = 4294967296
osd memory target = 939524096
osd heartbeat grace = 4
osd heartbeat interval = 1
mon osd min down reporters = 1
mon osd down out interval = 600
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 1
public addr = 127.0.0.1
ms bind msgr1 = false
keyring = {folder}/$name.keyring
mon data = {folder}/mon.$id
mgr data = {folder}/mgr.$id
osd data = {folder}/osd.$id
run dir = {folder}
pid file = {folder}/$name.pid
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
crash dir = {folder}/crash
[client]
log file =
admin socket =
""")

    def run(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode(errors='replace')[-1000:]}")
        return done.stdout.decode()

    admin, mon_key = cluster.keyring, folder / "mon.keyring"
    run("ceph-authtool", "-C", str(mon_key), "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    caps = [word for part in ("mon", "osd", "mds", "mgr") for word in ("--cap", part, "allow *")]
    run("ceph-authtool", "-C", str(admin), "--gen-key", "-n", "client.admin", *caps)
    run("ceph-authtool", str(mon_key), "--import-keyring", str(admin))
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", str(folder / "monmap"))
    conf = ("-c", str(cluster.conf))
    run("ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "--keyring", str(mon_key))
    shutil.copy(mon_key, folder / "mon.a" / "keyring")
    cluster.start("mon", "a")
    _wait(lambda: bool(cluster.ceph("mon", "stat")))
    (folder / "mgr.x").mkdir()
    cluster.ceph(
        "auth", "get-or-create", "mgr.x", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *",
        "-o", str(folder / "mgr.x.keyring"),
    )  # fmt: skip
    cluster.start("mgr", "x")
    for number in range(OSDS):
        home = folder / f"osd.{number}"
        home.mkdir()
        # What `ceph-authtool --gen-key` prints, made here: type, time and length before 16 random bytes.
        key = base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()
        (folder / f"osd.{number}.keyring").write_text(f"[osd.{number}]\n\tkey = {key}\n")
        identity = str(uuid.uuid4())
        cluster.ceph("osd", "new", identity, "-i", "-", stdin=json.dumps({"cephx_secret": key}).encode())
        run("ceph-osd", *conf, "-i", str(number), "--mkfs", "--osd-uuid", identity)
        cluster.start_osd(number)
    cluster.ceph("config", "set", "global", "mon_warn_on_pool_no_redundancy", "false")
    _wait(lambda: cluster.status()["osdmap"]["num_up_osds"] == OSDS)


def _wait(ready: Any) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            if ready():
                return
        except (RuntimeError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise RuntimeError("Ceph did not become ready")
        time.sleep(0.2)
