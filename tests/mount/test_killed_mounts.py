"""kill -9 of one of two mounts while both write: what either acked is there at once in the other, and at last in the bucket.

`FOREBAY_PAIR_KILLS=50 pytest tests/mount/test_killed_mounts.py` kills fifty times.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket
from forebay.tests.mount.test_killed_writing import brief, in_bucket
from forebay.tests.support import file_workload as workload
from forebay.tests.support.command_line import CommandLine, process_is_alive, wait_until

KILLS = int(os.environ.get("FOREBAY_PAIR_KILLS", "2"))
SEED = int(os.environ.get("FOREBAY_SEED", "1"))
OPTIONS = ("--writeback-delay", "0s", "--io-timeout", "10s")
RECHECK_S = 180.0


@dataclass
class Worker:
    """A workload on a folder of its own, and what it said."""

    folder: Path
    seed: int
    begun: list[workload.Step] = field(default_factory=list)
    acked: int = 0
    failure: str = ""

    def __enter__(self) -> "Worker":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "forebay.tests.support.file_workload", str(self.folder), str(self.seed)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        """After the step that it takes; one that hangs is killed after a while."""
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.split()
            if words[0] == "+":
                self.begun.append(words[1:])
            elif words[0] == "=":
                self.acked += 1
            elif words[0] == "!":
                self.failure = line


@dataclass
class Side:
    """One of the two mounts, and the folder that only its programs write."""

    name: str
    where: Path
    model: workload.Model = field(default_factory=dict)
    pid: int = 0

    def mount(self, forebay: CommandLine, bucket: Bucket) -> None:
        answer = forebay.json("mount", bucket.url, self.where, "--cache-name", self.name, *OPTIONS)
        self.pid = int(answer["pid"])

    def take(self, worker: Worker) -> workload.States | None:
        """What a worker acked is in the model from now on; the step that was cut off, if one was."""
        for words in worker.begun[: worker.acked]:
            self.model = workload.apply(self.model, words)
        cut_off = worker.begun[worker.acked :]
        return workload.States(self.model, cut_off[0]) if cut_off else None


@pytest.mark.timeout(300 + 60 * KILLS)
def test_what_two_mounts_acked_survives_kill_9_of_either(shared: CommandLine, bucket: Bucket) -> None:
    rng = random.Random(SEED)
    sides = [Side(name, shared.new_mountpoint()) for name in ("one", "two")]
    for side in sides:
        side.mount(shared, bucket)
        (side.where / side.name).mkdir()
    for turn in range(KILLS):
        victim, other = sides[turn % 2], sides[1 - turn % 2]
        wanted = rng.randrange(3, 25)
        with (
            Worker(other.where / other.name, SEED * 10_000 + 2 * turn) as going_on,
            Worker(victim.where / victim.name, SEED * 10_000 + 2 * turn + 1) as cut_off,
        ):
            wait_until(lambda: cut_off.acked >= wanted or cut_off.failure, "some steps", timeout_s=120)  # noqa: B023
            assert not cut_off.failure, f"{cut_off.begun[-1]}: {cut_off.failure}"
            time.sleep(rng.random() ** 3 * 0.03)  # the moment is what this test is about
            os.kill(victim.pid, signal.SIGKILL)
            wait_until(lambda: not process_is_alive(victim.pid), "the end of a mount")  # noqa: B023
            acked = going_on.acked
            wait_until(lambda: going_on.acked > acked or going_on.failure, "a step of the other", timeout_s=120)  # noqa: B023
        what = f"seed {SEED}, turn {turn}"
        assert not going_on.failure, f"{what}: {going_on.begun[-1]}: {going_on.failure}"
        assert other.take(going_on) is None
        interrupted = victim.take(cut_off)
        found = workload.read_model(other.where / victim.name)
        if interrupted is not None and interrupted.allow(found):
            victim.model = found
        assert brief(found) == brief(victim.model), f"{what}: {cut_off.begun[cut_off.acked :]}"
        victim.mount(shared, bucket)
        for side in sides:
            for place in sides:
                assert brief(workload.read_model(side.where / place.name)) == brief(place.model), f"{what}, {side.name}"
        if turn % 2 or turn == KILLS - 1:
            shared.ok("flush", victim.where, "--timeout", "3m")
            expected = {f"{side.name}/{path}": data for side in sides for path, data in side.model.items()}
            expected |= {side.name: None for side in sides}
            if brief(in_bucket(bucket)) != brief(expected):
                wait_until(
                    lambda: all(shared.status(side.where)["write"]["doomed"] == 0 for side in sides),
                    "a second look at keys", timeout_s=RECHECK_S,
                )  # fmt: skip
            assert brief(in_bucket(bucket)) == brief(expected), what
            assert bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []) == []
