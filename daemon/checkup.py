"""What `forebay doctor` looks at: one small function per check, each answering with a grade, what was found, and a remedy.

A check never raises for what it came to find out, and each has a bound on its time, so that a sick machine still
gets its whole list.
"""

import asyncio
import contextlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import amounts, config
from ..errors import ForebayError
from . import machine, priority

SPEED_PROBE_BYTES = 64 * amounts.MIB
SLOW_DISK_BYTES_PER_S = 100 * amounts.MIB
CLOCK_SKEW_WARN_S = 5.0
CLOCK_SKEW_FAIL_S = 600.0  # S3 refuses requests signed 15 minutes off
OPEN_FILES_WANTED = 16384
PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. `remedy` is empty when there is nothing to do."""

    what: str
    grade: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def examine(source: str | None, settings: config.Settings, *, measure_speed: bool) -> Iterator[Finding]:
    """All checks, one after the other; those of the store only when a source is given."""
    yield check_fuse_device()
    yield from check_fusermount()
    yield check_kernel()
    yield from check_allow_other(settings)
    yield check_read_ahead()
    yield check_open_files()
    yield check_priority()
    yield check_ram(settings)
    for folder in settings.cache_dir or (config.default_cache_dir(),):
        yield from check_cache_disk(folder, measure_speed=measure_speed)
    if settings.meta_url is not None:
        yield check_metadata(settings)
    if source is not None:
        yield from check_source(source, settings)


def check_fuse_device(device: Path = Path("/dev/fuse")) -> Finding:
    if not device.exists():
        return Finding(
            "fuse device", "fail", f"there is no {device}",
            "load the module (modprobe fuse); in a container, give it the device (--device /dev/fuse, or a privileged pod)",
        )  # fmt: skip
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding(
            "fuse device", "fail", f"{device} cannot be opened: {error.strerror}",
            "allow this user to read and write it; in a container, allow the device in its cgroup",
        )  # fmt: skip
    return Finding("fuse device", "ok", f"{device} opens")


def check_fusermount() -> Iterator[Finding]:
    found = shutil.which("fusermount3")
    if os.geteuid() == 0:
        yield Finding("fusermount3", "ok", f"{found or 'not installed'} (not needed by root)")
    elif found is None:
        yield Finding("fusermount3", "fail", "not installed", "install the package fuse3, or mount as root")
    elif not os.stat(found).st_mode & 0o4000:
        yield Finding("fusermount3", "fail", f"{found} is not setuid root", f"chmod u+s {found}, as root")
    else:
        yield Finding("fusermount3", "ok", found)


def check_kernel() -> Finding:
    release = platform.release()
    numbers = re.match(r"([0-9]+)\.([0-9]+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) < (5, 4):
        return Finding("kernel", "warn", f"{release} is old", "5.4 or later reads faster through FUSE")
    return Finding("kernel", "ok", release)


def check_allow_other(settings: config.Settings) -> Iterator[Finding]:
    if os.geteuid() == 0:
        return
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        yield Finding("allow-other", "ok", "user_allow_other is set in /etc/fuse.conf")
    elif settings.allow_other:
        yield Finding(
            "allow-other",
            "fail",
            "allow-other is set, /etc/fuse.conf does not permit it",
            "add the line user_allow_other to it",
        )
    else:
        yield Finding("allow-other", "ok", "not permitted by /etc/fuse.conf, and not asked for")


def check_read_ahead() -> Finding:
    knobs = list(Path("/sys/class/bdi").glob("*/read_ahead_kb"))
    if knobs and os.access(knobs[0], os.W_OK):
        return Finding("read-ahead", "ok", "can be raised for mounts")
    return Finding(
        "read-ahead", "warn", "cannot be raised for mounts: /sys/class/bdi is not writable",
        "big files read at about half the speed with the kernel's 128 KiB; mount as root with a writable /sys",
    )  # fmt: skip


def check_open_files() -> Finding:
    soft, hard = machine.open_file_limits()
    if hard < OPEN_FILES_WANTED:
        return Finding(
            "open files",
            "warn",
            f"at most {hard}",
            f"raise the hard limit to {OPEN_FILES_WANTED} (ulimit -Hn, LimitNOFILE=)",
        )
    return Finding("open files", "ok", f"{soft}, may be raised to {hard}")


def check_priority() -> Finding:
    if machine.may_set_priority(priority.FIRST):
        return Finding("priority", "ok", "mounts go before other programs")
    return Finding(
        "priority", "warn", "mounts may not go before other programs",
        "on busy processors each request waits for its turn; mount as root, or with CAP_SYS_NICE",
    )  # fmt: skip


def check_ram(settings: config.Settings) -> Finding:
    memory = machine.memory_bytes()
    place = machine.file_system_of(settings.ram_dir)
    facts = (
        f"{settings.ram_dir}: {amounts.format_size(place.free_bytes)} free of {amounts.format_size(place.total_bytes)}"
        f" ({place.kind}); memory: {amounts.format_size(memory)}"
    )
    if place.kind not in ("tmpfs", "ramfs"):
        return Finding(
            "ram tier", "warn", f"{settings.ram_dir} is not on tmpfs but {place.kind}", "give ram-dir a folder on tmpfs"
        )
    if place.free_bytes < 128 * amounts.MIB:
        return Finding(
            "ram tier",
            "warn",
            facts,
            "give the container a larger /dev/shm (docker --shm-size; a memory emptyDir in a pod)",
        )
    return Finding("ram tier", "ok", facts)


def check_cache_disk(folder: Path, *, measure_speed: bool) -> Iterator[Finding]:
    """Room, inodes and kind of the disk under a cache folder, and its speed, with a file that is removed again."""
    place = machine.file_system_of(folder)
    facts = f"{folder}: {amounts.format_size(place.free_bytes)} free of {amounts.format_size(place.total_bytes)} ({place.kind})"
    base = machine.existing_ancestor(folder)
    if place.read_only or not os.access(base, os.W_OK | os.X_OK):
        yield Finding(
            "cache disk", "fail", f"{folder} cannot be written", "give cache-dir a folder that this user may write"
        )
        return
    if place.kind in ("tmpfs", "ramfs"):
        yield Finding("cache disk", "warn", f"{facts}: memory, not a disk", "give cache-dir a folder on a local SSD")
    elif place.is_network:
        yield Finding("cache disk", "warn", f"{facts}: over the network", "give cache-dir a folder on a local SSD")
    elif place.free_bytes < max(amounts.GIB, place.total_bytes // 20):
        yield Finding("cache disk", "warn", f"{facts}: nearly full", "make room, or give cache-dir another disk")
    else:
        yield Finding("cache disk", "ok", facts)
    if place.inodes_total:
        part = place.inodes_free / place.inodes_total
        yield Finding(
            "cache inodes", "ok" if part > 0.1 else "warn", f"{part:.0%} free",
            "" if part > 0.1 else "remove files: the cache keeps a part of the inodes free and will hold less",
        )  # fmt: skip
    if measure_speed and place.free_bytes > 4 * SPEED_PROBE_BYTES:
        try:
            write, read = disk_speed(base)
        except OSError as error:
            yield Finding(
                "cache speed", "fail", f"writing in {base} failed: {error.strerror}", "check the disk (dmesg)"
            )
            return
        slow = min(write, read) < SLOW_DISK_BYTES_PER_S
        yield Finding(
            "cache speed", "warn" if slow else "ok",
            f"writes {amounts.format_rate(write)}, reads {amounts.format_rate(read)} (a file of {amounts.format_size(SPEED_PROBE_BYTES)})",
            "a cache on this disk may be slower than the store; use a local SSD" if slow else "",
        )  # fmt: skip


def disk_speed(folder: Path) -> tuple[float, float]:
    """(write, read) in bytes per second, sequentially, flushed to the disk and not from the page cache."""
    block = os.urandom(4 * amounts.MIB)
    count = SPEED_PROBE_BYTES // len(block)
    # O_TMPFILE would leave nothing even after a crash, but not every file system has it.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".forebay-doctor-") as file:
        start = time.perf_counter()
        for _ in range(count):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())
        write_s = time.perf_counter() - start
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for index in range(count):
            os.pread(file.fileno(), len(block), index * len(block))
        read_s = time.perf_counter() - start
    return SPEED_PROBE_BYTES / write_s, SPEED_PROBE_BYTES / read_s


def check_metadata(settings: config.Settings) -> Finding:
    """Whether the versions of datasets can be read where the settings say they are."""
    from ..snapshots import open_meta

    where = config.TABLE["meta-url"].show(settings.meta_url)
    start = time.perf_counter()
    try:
        with contextlib.closing(open_meta(settings.meta_url, timeout_s=PROBE_TIMEOUT_S)) as meta:
            count = len(meta.dataset_names())
    except ForebayError as error:
        return Finding("metadata", "fail", error.message, error.remedy or "check meta-url, and whether the server runs")
    took = amounts.format_duration(time.perf_counter() - start)
    return Finding("metadata", "ok", f"{where} answers in {took}; {count} datasets")


def check_source(source: str, settings: config.Settings) -> Iterator[Finding]:
    """Where its credentials are, whether its clock is ours, and whether it can be listed."""
    if source.startswith("s3://"):
        yield from check_credentials(settings)
        yield from check_clock(source, settings)
    yield check_listing(source, settings)


def check_listing(source: str, settings: config.Settings) -> Finding:
    """Ask the source what a mount would ask first. Bounded by the io-timeout."""
    from . import opening

    async def ask() -> str:
        opened = await opening.open_source(source, settings, what="forebay doctor")
        try:
            return opened.name.text
        finally:
            await opened.close()

    start = time.perf_counter()
    try:
        name = asyncio.run(ask())
    except ForebayError as error:
        return Finding("source", "fail", error.message, error.remedy or "")
    return Finding(
        "source", "ok", f"{name} can be read, asked in {amounts.format_duration(time.perf_counter() - start)}"
    )


def check_credentials(settings: config.Settings) -> Iterator[Finding]:
    """Which of the AWS ways has credentials: only the way is told."""
    import botocore.exceptions
    import botocore.session

    ways = {
        "env": "environment variables",
        "shared-credentials-file": "the shared credentials file",
        "config-file": "the AWS configuration file",
        "assume-role": "an assumed role",
        "assume-role-with-web-identity": "a web identity token (service account)",
        "sso": "single sign-on",
        "container-role": "the container's role",
        "iam-role": "the instance's role",
        "custom-process": "a credential process",
    }
    if settings.anonymous:
        yield Finding("credentials", "ok", "none wanted (anonymous)")
        return
    try:
        session = botocore.session.Session(profile=settings.profile)
        session.set_config_variable("metadata_service_timeout", 1)
        credentials = session.get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        yield Finding(
            "credentials",
            "fail",
            f"the AWS configuration cannot be used: {error}",
            "correct it, or choose another profile",
        )
        return
    if credentials is None:
        yield Finding(
            "credentials", "fail", "none found",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (--profile) of ~/.aws/credentials",
        )  # fmt: skip
    else:
        yield Finding("credentials", "ok", f"found in {ways.get(credentials.method, credentials.method)}")


def check_clock(source: str, settings: config.Settings) -> Iterator[Finding]:
    """Compare our clock with the Date that the store answers with, whatever else it answers."""
    import email.utils
    import http.client
    import urllib.error
    import urllib.request

    endpoint = settings.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    bucket = source.removeprefix("s3://").partition("/")[0]
    url = endpoint or f"https://{bucket}.s3.amazonaws.com"
    before = time.time()
    try:
        with contextlib.closing(urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S)) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            date = error.headers.get("Date")
    except (OSError, http.client.HTTPException) as error:
        yield Finding(
            "store", "fail", f"{url} cannot be reached: {getattr(error, 'reason', error)}",
            "check the address (endpoint-url), name resolution, proxies and firewalls",
        )  # fmt: skip
        return
    took_s = time.time() - before
    yield Finding("store", "ok", f"{url} answers in {amounts.format_duration(took_s)}")
    if date is None:
        return
    # The answer was written between `before` and now, and tells whole seconds.
    skew_s = email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - (before + took_s / 2)
    if abs(skew_s) < CLOCK_SKEW_WARN_S:
        yield Finding("clock", "ok", "agrees with the store's")
        return
    yield Finding(
        "clock", "fail" if abs(skew_s) > CLOCK_SKEW_FAIL_S else "warn",
        f"ours is {amounts.format_duration(abs(skew_s))} {'behind' if skew_s > 0 else 'ahead of'} the store's",
        "synchronise the clock (chrony, systemd-timesyncd): signatures with a wrong time are refused",
    )  # fmt: skip
