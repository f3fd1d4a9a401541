"""Mounting, unmounting, signals, and what is left when the server is killed: nothing that hangs."""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from forebay.errors import MountError, NotMounted
from forebay.fuse_mount import lane
from forebay.fuse_mount import mountpoint as mounting
from forebay.fuse_mount.mount_table import fuse_mount_of, mounted_at, mounts
from forebay.fuse_mount.mountpoint import control_files, detach, raise_read_ahead
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.session import mount
from forebay.tests.fuse.conftest import MountIt, Transport
from forebay.tests.support.fuse import WAIT_S, need_fuse, served, until
from forebay.tests.support.mount_process import CONTENT, mount_process
from forebay.tests.support.servers import unavailable
from forebay.tests.support.static_view import MemoryCache, StaticView


def mount_here(path: Path, **choices: object) -> None:
    view = StaticView()
    with served(view, MemoryCache(view), path, MountOptions(**choices)):  # type: ignore[arg-type]
        pass


def test_the_mount_table_shows_it(mount_it: MountIt) -> None:
    view = StaticView({b"sub/file": b"1"})
    path = mount_it(view).path
    entry = mounted_at(str(path))
    assert entry is not None
    assert (entry.fstype, entry.source) == ("fuse.forebay", "test://source")
    assert fuse_mount_of(path / "sub" / "file") == entry
    assert fuse_mount_of(path.parent) is None


@pytest.mark.parametrize(
    "name", ["with space", "tab\there", "back\\slash", "octal\\040", "new\nline", "ümläut", "#hash", "comma,colon:"]
)
def test_odd_mountpoints_and_sources(tmp_path: Path, name: str) -> None:
    need_fuse()
    path = tmp_path / name
    path.mkdir()
    view = StaticView({b"a": b"1"})
    with served(view, MemoryCache(view), path, MountOptions(), source=f"test://{name}"):
        assert (path / "a").read_bytes() == b"1"
        entry = mounted_at(str(path))
        assert entry is not None
        assert entry.source == f"test://{name}"
    assert mounted_at(str(path)) is None


def test_mounted_through_a_symlink(tmp_path: Path) -> None:
    need_fuse()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    view = StaticView({b"a": b"1"})
    with served(view, MemoryCache(view), tmp_path / "link", MountOptions()) as mounted:
        assert mounted.mount.mountpoint == str(tmp_path / "real")
        assert (tmp_path / "real" / "a").exists()


def test_refusals_say_why_and_what_to_do(mountpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MountError, match="does not exist; create it"):
        mount_here(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="is not a folder"):
        mount_here(tmp_path / "file")
    (mountpoint / "occupant").touch()
    with pytest.raises(MountError, match=r"not empty \(it holds 'occupant'\).*--nonempty"):
        mount_here(mountpoint)
    mount_here(mountpoint, nonempty=True)
    (mountpoint / "occupant").unlink()
    view = StaticView()
    refused = pytest.raises(MountError, match=r"mountpoint already, of test://source.*forebay umount")
    with served(view, MemoryCache(view), mountpoint, MountOptions()), refused:
        mount_here(mountpoint)
    assert mounted_at(str(mountpoint)) is None


def test_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mounting, "DEVICE", "/dev/no-such-fuse")
    with pytest.raises(MountError, match=r"there is no /dev/no-such-fuse; load the kernel module"):
        mount_here(tmp_path)


def test_mounted_by_the_helper(monkeypatch: pytest.MonkeyPatch, mountpoint: Path, transport: Transport) -> None:
    """The way of those who are not root: fusermount3 mounts and unmounts."""
    if shutil.which("fusermount3") is None:
        unavailable("fusermount3 is not installed (package fuse3)")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    view = StaticView({b"a": b"1"})
    source = "test://with,comma\\and space"
    with served(view, MemoryCache(view), mountpoint, MountOptions(transport=transport), source=source):
        assert (mountpoint / "a").read_bytes() == b"1"
        entry = mounted_at(str(mountpoint))
        assert entry is not None
        assert (entry.fstype, entry.source) == ("fuse.forebay", source)
        with (mountpoint / "a").open("rb"), pytest.raises(MountError, match="busy"):
            detach(mountpoint)
    assert mounted_at(str(mountpoint)) is None
    with pytest.raises(MountError, match="cannot be mounted"):
        mounting._mount_by_helper(str(mountpoint / "missing"), source, MountOptions())


def test_a_kernel_too_old_for_the_lane_is_served_through_libfuse(
    monkeypatch: pytest.MonkeyPatch, mountpoint: Path
) -> None:
    monkeypatch.setattr(lane, "OLDEST_MINOR", 999)
    view = StaticView({b"a": b"1"})
    with served(view, MemoryCache(view), mountpoint, MountOptions(transport="auto")) as mounted:
        assert (mountpoint / "a").read_bytes() == b"1"
        assert mounted.mount.transport == "pyfuse3"
        assert any("slower" in note for note in mounted.mount.status().notes)
    with pytest.raises(MountError, match=r"needs 7\.999"):
        mount_here(mountpoint, transport="lane")
    assert mounted_at(str(mountpoint)) is None


def test_read_ahead_is_raised(mount_it: MountIt) -> None:
    view = StaticView()
    mounted = mount_it(view, read_ahead_bytes=3 * 1024 * 1024)
    entry = mounted_at(str(mounted.path))
    assert entry is not None
    setting = Path(f"/sys/class/bdi/{entry.device[0]}:{entry.device[1]}/read_ahead_kb")
    assert setting.read_text().strip() == "3072"
    assert mounted.mount.status().notes == ()


def test_read_ahead_that_may_not_be_raised_is_told() -> None:
    reason = raise_read_ahead((0, 999_999), 1024 * 1024)
    assert reason is not None
    assert reason.startswith(
        "read-ahead stays at the kernel's default, sequential reads are slower: /sys/class/bdi/0:999999"
    )


def test_descriptors_are_closed_on_exec(mount_it: MountIt) -> None:
    mount_it(StaticView({b"a": b"1"}))
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == Path("/dev/fuse"):
                assert not os.get_inheritable(int(link.name))


def test_nothing_is_left_after_unmounting(mountpoint: Path, transport: Transport) -> None:
    view = StaticView({b"a": b"1"})
    for _ in range(3):
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        with served(view, MemoryCache(view), mountpoint, MountOptions(transport=transport)):
            assert (mountpoint / "a").read_bytes() == b"1"
        view.lookups.clear()  # an unmount forgets everything at once, without saying so
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert mounted_at(str(mountpoint)) is None


async def test_several_mounts_of_one_process(tmp_path: Path) -> None:
    need_fuse()
    async with contextlib.AsyncExitStack() as stack:
        for index in range(3):
            (tmp_path / str(index)).mkdir()
            view = StaticView({b"file": str(index).encode()})
            mounting = mount(view, MemoryCache(view), tmp_path / str(index), source="test://", options=MountOptions())
            await stack.enter_async_context(await mounting)
        for index in range(3):
            assert await asyncio.to_thread((tmp_path / str(index) / "file").read_text) == str(index)
    assert not [entry for entry in mounts() if entry.mountpoint.startswith(str(tmp_path))]


async def test_a_second_mount_through_pyfuse3_is_refused(tmp_path: Path) -> None:
    need_fuse()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    view, options = StaticView(), MountOptions(transport="pyfuse3")
    async with await mount(view, MemoryCache(view), tmp_path / "first", source="test://", options=options):
        with pytest.raises(MountError, match="has a mount through pyfuse3 already"):
            await mount(view, MemoryCache(view), tmp_path / "second", source="test://", options=options)
        assert mounted_at(str(tmp_path / "second")) is None
    assert mounted_at(str(tmp_path / "first")) is None


def test_unmounted_from_outside(mountpoint: Path, transport: Transport) -> None:
    with mount_process(mountpoint, transport) as process:
        until(lambda: subprocess.run(["umount", mountpoint], check=False).returncode == 0, "umount from outside")
        assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(mountpoint: Path, transport: Transport, which: signal.Signals) -> None:
    with mount_process(mountpoint, transport) as process:
        assert (mountpoint / "file").read_bytes() == CONTENT
        process.send_signal(which)
        assert process.wait(WAIT_S) == 0
        assert mounted_at(str(mountpoint)) is None


def test_a_busy_mount_is_detached_and_served_until_the_last_close(mountpoint: Path, transport: Transport) -> None:
    with mount_process(mountpoint, transport, grace_s=WAIT_S) as process:
        with (mountpoint / "file").open("rb", buffering=0) as file:
            process.terminate()
            until(lambda: mounted_at(str(mountpoint)) is None, "detaching", 20.0)
            assert file.read() == CONTENT
            assert process.poll() is None
        assert process.wait(WAIT_S) == 0


def test_the_grace_time_ends(mountpoint: Path, transport: Transport) -> None:
    with mount_process(mountpoint, transport, grace_s=0.2) as process:
        descriptor = os.open(mountpoint / "file", os.O_RDONLY)
        process.terminate()
        assert process.wait(WAIT_S) == 0
        with pytest.raises(OSError) as caught:
            os.read(descriptor, 1)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_second_signal_ends_the_grace_time(mountpoint: Path, transport: Transport) -> None:
    with mount_process(mountpoint, transport, grace_s=600) as process:
        descriptor = os.open(mountpoint / "file", os.O_RDONLY)
        process.terminate()
        until(lambda: mounted_at(str(mountpoint)) is None, "detaching")
        process.terminate()
        assert process.wait(WAIT_S) == 0
        with contextlib.suppress(OSError):
            os.close(descriptor)


def reader_process(path: Path) -> subprocess.Popen[bytes]:
    """A process that reads the file once and exits with the errno that it met."""
    code = "import sys\ntry: open(sys.argv[1],'rb').read()\nexcept OSError as e: sys.exit(e.errno)"
    return subprocess.Popen([sys.executable, "-S", "-c", code, str(path)])


def requests_waiting(path: Path) -> int:
    entry = mounted_at(str(path))
    assert entry is not None
    with control_files() as controls:
        assert controls is not None
        return int((controls / str(entry.device[1]) / "waiting").read_text())


def test_readers_of_a_killed_server_get_an_error(mountpoint: Path, transport: Transport) -> None:
    with mount_process(mountpoint, transport) as process:
        readers = [reader_process(mountpoint / "hanging") for _ in range(4)]
        # They share one page, so one request stands for all.
        until(lambda: requests_waiting(mountpoint) >= 1, "a read in flight")
        process.kill()
        for reader in readers:
            assert reader.wait(WAIT_S) in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


def test_a_dead_mountpoint_is_taken_over(mountpoint: Path, transport: Transport) -> None:
    with mount_process(mountpoint, transport) as process:
        process.kill()
        process.wait()
    with pytest.raises(OSError, match="not connected"):
        mountpoint.stat()
    with mount_process(mountpoint, transport):
        assert (mountpoint / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("how", [{}, {"lazy": True}, {"force": True}])
def test_unmounting_a_dead_mount(mountpoint: Path, how: dict[str, bool]) -> None:
    with mount_process(mountpoint, "lane") as process:
        process.kill()
        process.wait()
    # Whoever asks for the state of all mounts of the machine, such as another test, is in this one for a moment.
    detach(mountpoint, patience_s=WAIT_S, **how)
    assert mounted_at(str(mountpoint)) is None
    with pytest.raises(NotMounted, match="not a mountpoint"):
        detach(mountpoint, **how)


def test_a_busy_mount_is_not_removed_without_lazy(mountpoint: Path) -> None:
    with mount_process(mountpoint, "lane") as process:
        with (mountpoint / "file").open("rb"):
            with pytest.raises(MountError, match=r"busy.*--lazy"):
                detach(mountpoint)
            detach(mountpoint, lazy=True)
            assert process.poll() is None
        assert process.wait(WAIT_S) == 0


def test_who_only_looks_at_a_mount_does_not_keep_it(mountpoint: Path) -> None:
    with mount_process(mountpoint, "lane") as process:
        looking = (mountpoint / "file").open("rb")
        closing = threading.Timer(0.3, looking.close)
        closing.start()
        detach(mountpoint, patience_s=WAIT_S)
        closing.join()
        assert process.wait(WAIT_S) == 0


def test_a_server_that_does_not_answer_is_removed_by_force(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is stopped (SIGSTOP): every question to the mount would hang."""
    monkeypatch.setattr(mounting, "_PROBE_TIMEOUT_S", 0.5)
    with mount_process(mountpoint, "lane") as process:
        process.send_signal(signal.SIGSTOP)
        reader = reader_process(mountpoint / "folder" / "name")
        until(lambda: requests_waiting(mountpoint) >= 1, "a request in flight")
        with pytest.raises(MountError, match=r"does not answer; forebay umount --force"):
            mount_here(mountpoint)
        detach(mountpoint, force=True)
        assert reader.wait(WAIT_S) in (errno.ENOTCONN, errno.ECONNABORTED)
        assert mounted_at(str(mountpoint)) is None
        process.send_signal(signal.SIGCONT)
        assert process.wait(WAIT_S) == 0
