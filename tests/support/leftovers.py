"""Nothing of a test run outlives it, however it ends: no process, no mount, no folder in memory.

Every process of a run carries `MARK` in its environment, so that also daemons that left their parent are known. A keeper,
which is a process of its own, waits for the end of pytest and then sweeps: tests clean up after themselves, but a test that
runs into its timeout takes pytest's worker process with it, and what that worker had started would run on for ever.

The value of `MARK` is a folder on tmpfs (`shm_folder`), for what tests put into memory; it goes with the run.
"""

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Not FOREBAY_...: those are settings, and tests of the command line start without any.
MARK = "TEST_RUN_OF_FOREBAY"
_GRACE_S = 3.0
_SWEEP_TIMEOUT_S = 20.0
_MNT_DETACH = 2


def begin(temporary: Path) -> None:
    """Mark this process and all that it starts, and start the keeper. For the process that began the run, not for its workers.

    `temporary` is the folder below which tests mount.
    """
    folder = tempfile.mkdtemp(prefix="tests-of-forebay-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    os.environ[MARK] = folder
    keeper = subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, str(os.getpid()), folder, str(temporary)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, cwd="/", start_new_session=True,
    )  # fmt: skip
    keeper.returncode = 0  # it outlives us: nobody waits for it


def end(temporary: Path) -> list[str]:
    """Sweep now; the command lines of the processes that tests had left, and that did not end by themselves in a moment."""
    deadline = time.monotonic() + _GRACE_S
    while processes_of(os.environ[MARK]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return sweep(os.environ.pop(MARK), temporary)


def shm_folder() -> Path:
    """The folder of this run on tmpfs."""
    return Path(os.environ[MARK])


def processes_of(folder: str) -> list[int]:
    """Every living process with this mark, apart from this one."""
    wanted = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # A process may end while it is looked at; those of other users are not ours. A zombie has no environment.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def mounts_below(folder: Path) -> list[str]:
    """Mountpoints in the folder, the latest first."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    # The kernel writes blanks and the like as three octal digits.
    places = [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines]
    return [place for place in reversed(places) if place.startswith(f"{folder}/")]


def sweep(folder: str, temporary: Path) -> list[str]:
    """Kill what carries the mark, unmount what is below `temporary`, remove `folder`; the command lines of what was killed."""
    ended: dict[int, str] = {}
    deadline = time.monotonic() + _SWEEP_TIMEOUT_S
    while time.monotonic() < deadline and (left := processes_of(folder)):
        for pid in left:
            with contextlib.suppress(OSError):
                ended.setdefault(pid, Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " "))
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    libc = ctypes.CDLL(None)
    for place in mounts_below(temporary):
        if libc.umount2(os.fsencode(place), _MNT_DETACH) != 0 and (helper := shutil.which("fusermount3")):
            subprocess.run([helper, "-u", "-z", "--", place], check=False, capture_output=True, timeout=20)
    shutil.rmtree(folder, ignore_errors=True)
    return list(ended.values())


def _keep(pid: int, folder: str, temporary: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        pytest_ends = select.poll()
        pytest_ends.register(os.pidfd_open(pid), select.POLLIN)
        pytest_ends.poll()
    sweep(folder, temporary)


if __name__ == "__main__":
    _keep(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
