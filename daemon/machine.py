"""Facts about this machine that sizes and checks are made from: memory, file systems, limits. Reads only, no opinions.

In a container the memory is what the cgroup allows, not what the machine has, and what lies on a tmpfs counts as
memory of the container: a RAM tier sized from MemTotal would get the job killed.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "lustre", "glusterfs", "beegfs", "virtiofs"}

# From <linux/capability.h>.
CAP_SYS_NICE = 23


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What a path lies on. Sizes in bytes; `inodes_total` is 0 where the file system has no fixed number."""

    mountpoint: str
    kind: str
    device: str
    total_bytes: int
    free_bytes: int
    inodes_total: int
    inodes_free: int
    read_only: bool

    @property
    def is_network(self) -> bool:
        return self.kind in NETWORK_FILE_SYSTEMS or self.kind.startswith("fuse.")


def existing_ancestor(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def file_system_of(path: Path) -> FileSystem:
    """The file system that `path` lies on or would be created on."""
    found = existing_ancestor(path)
    stat, usage = os.stat(found), os.statvfs(found)
    device_id = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}"
    mountpoint, kind, device = "?", "?", "?"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            fields = before.split()
            if fields[2] == device_id:
                mountpoint, (kind, device, *_) = _unescape(fields[4]), after.split()
    return FileSystem(
        mountpoint=mountpoint,
        kind=kind,
        device=device,
        total_bytes=usage.f_blocks * usage.f_frsize,
        free_bytes=usage.f_bavail * usage.f_frsize,
        inodes_total=usage.f_files,
        inodes_free=usage.f_favail,
        read_only=bool(usage.f_flag & os.ST_RDONLY),
    )


def _unescape(text: str) -> str:
    """mountinfo writes blank, tab, newline and backslash as octal escapes."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text


def memory_bytes() -> int:
    """Memory that this process may use: of the machine, or less where a cgroup (v2 or v1) says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _cgroup_memory_limits():
        total = min(total, limit)
    return total


def _cgroup_memory_limits() -> list[int]:
    limits = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, leaf = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            base, leaf = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        # A limit may be set on any group above. In a container the path may lie outside of what is visible: the root then holds.
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            try:
                text = (base / part / leaf).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                limits.append(int(text))
    return limits


def open_file_limits() -> tuple[int, int]:
    """(soft, hard) limit of open files of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_open_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, which needs no permission; returns the limit now."""
    soft, hard = open_file_limits()
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def may_set_priority(nice: int) -> bool:
    """Whether this process may take that priority (capabilities(7), CAP_SYS_NICE; getrlimit(2), RLIMIT_NICE)."""
    if nice >= 20 - resource.getrlimit(resource.RLIMIT_NICE)[0]:
        return True
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & 1 << CAP_SYS_NICE)
    return False


def process_start_ticks(pid: int) -> int | None:
    """When a process started (clock ticks since boot), which tells it from a later one with the same number; None if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
