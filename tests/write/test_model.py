"""Random operations, faults of the store and crashes, against a dict: the view is right at every step, and so is the bucket at last."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forebay.cache.write.nodes import Kind
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.write_lab import FOLDER, Lab

T = TypeVar("T")
MIB = 1024 * 1024
PATHS = [b"a", b"b", b"d", b"d/a", b"d/b", b"d/e", b"d/e/a", b"e", b"e/a", b"e/e", b"e/e/b"]
path_of = st.sampled_from(PATHS)
size_of = st.sampled_from([0, 1, 10, 17, 40, 40, 100, 6 * MIB])
# Low enough that clean bytes and records are given up all the time.
LIMITS: dict[str, Any] = {"high_watermark_bytes": 60, "low_watermark_bytes": 20, "max_clean_records": 2}
CHANGING = ("put", "copy", "part", "copy_part", "create", "complete", "delete", "abort")


class Machine(RuleBasedStateMachine):
    """Small limits, so that inline data, data files, single and multipart uploads all occur."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-model-"))
        self.bucket = MultipartBucket(page_keys=3)
        self.model: dict[bytes, bytes | str] = {}
        self.rng = random.Random(0)
        self.lab = self.start()

    def start(self) -> Lab:
        return self.run(
            Lab.start(self.folder, self.bucket, b"mnt/", inline_bytes=16, part_bytes=5 * MIB, recheck_s=0.0, **LIMITS)
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def nothing_is_leaked(self) -> None:
        """Every data file and every inline datum belongs to a node, once what is being given up is gone."""
        side = self.lab.side
        async with asyncio.timeout(180):
            while True:
                nodes = [node for node in side.state.by_id.values() if node.data]
                files = {node.data for node in nodes if not node.inline}
                inline = {node.data for node in nodes if node.inline}
                if set(side.tier.names()) == files and set(side.records.inline_names()) == inline:
                    return
                await asyncio.sleep(0.01)

    def parent_is_there(self, path: bytes) -> bool:
        folder = path.rpartition(b"/")[0]
        return not folder or self.model.get(folder) == FOLDER

    def children(self, path: bytes) -> list[bytes]:
        return [one for one in self.model if one.startswith(path + b"/")]

    @initialize(seed=st.integers(0, 1000), listed=st.sets(st.sampled_from([b"a", b"d/a", b"d/e/a"])))
    def listed_before(self, seed: int, listed: set[bytes]) -> None:
        """Objects that were in the bucket before."""
        self.rng = random.Random(seed)
        for path in sorted(listed):
            data = self.rng.randbytes(self.rng.choice([5, 50, 11 * MIB]))
            self.bucket.write("mnt/" + path.decode(), data)
            self.model[path] = data
            parts = path.split(b"/")
            for depth in range(1, len(parts)):
                self.model[b"/".join(parts[:depth])] = FOLDER

    @rule(path=path_of, size=size_of)
    def write(self, path: bytes, size: int) -> None:
        if self.parent_is_there(path) and self.model.get(path) != FOLDER:
            data = self.rng.randbytes(size)
            self.lab.write(path, data)
            self.model[path] = data

    @rule(path=path_of, offset=st.sampled_from([0, 3, 12, 30, 5 * MIB + 7]), size=st.integers(1, 20))
    def patch(self, path: bytes, offset: int, size: int) -> None:
        old = self.model.get(path)
        if isinstance(old, bytes):
            data = self.rng.randbytes(size)
            self.lab.patch(path, offset, data)
            self.model[path] = old[:offset].ljust(offset, b"\0") + data + old[offset + size :]

    @rule(path=path_of, size=st.sampled_from([0, 2, 14, 60, 5 * MIB + 3]))
    def truncate(self, path: bytes, size: int) -> None:
        old = self.model.get(path)
        if isinstance(old, bytes):
            self.lab.truncate(path, size)
            self.model[path] = old[:size].ljust(size, b"\0")

    @rule(path=path_of)
    def unlink(self, path: bytes) -> None:
        if isinstance(self.model.get(path), bytes):
            self.lab.unlink(path)
            del self.model[path]

    @rule(path=path_of)
    def mkdir(self, path: bytes) -> None:
        if self.parent_is_there(path) and path not in self.model:
            self.lab.mkdir(path)
            self.model[path] = FOLDER

    @rule(path=path_of)
    def rmdir(self, path: bytes) -> None:
        if self.model.get(path) == FOLDER and not self.children(path):
            self.lab.rmdir(path)
            del self.model[path]

    @rule(path=path_of, mode=st.integers(0, 0o777))
    def chmod(self, path: bytes, mode: int) -> None:
        if path in self.model:
            self.lab.side.set_attributes(path, self.lab.shown(path), mode=mode)

    @rule(old=path_of, new=path_of)
    def rename(self, old: bytes, new: bytes) -> None:
        if old not in self.model or not self.parent_is_there(new) or old == new or new.startswith(old + b"/"):
            return
        if old.startswith(new + b"/"):
            return
        if new in self.model and ((self.model[old] == FOLDER) != (self.model[new] == FOLDER) or self.children(new)):
            return
        self.lab.rename(old, new)
        moved = {one: self.model.pop(one) for one in [old, *self.children(old)]}
        self.model.update({new + one[len(old) :]: content for one, content in moved.items()})

    @rule(first=path_of, second=path_of)
    def exchange(self, first: bytes, second: bytes) -> None:
        if not isinstance(self.model.get(first), bytes) or not isinstance(self.model.get(second), bytes):
            return
        self.lab.side.exchange(first, second, self.lab.shown(first), self.lab.shown(second))
        self.model[first], self.model[second] = self.model[second], self.model[first]

    @rule()
    def crash(self) -> None:
        self.run(self.lab.crash())
        self.lab = self.start()
        self.lab.side.state.validate()

    @rule()
    def let_it_run(self) -> None:
        self.run(asyncio.sleep(0.01))

    @rule()
    def flush(self) -> None:
        self.bucket.fault = lambda kind, key: None
        self.run(self.lab.side.flush(timeout_s=180))

    @rule(share=st.sampled_from([0.0, 0.2, 0.6]), seed=st.integers(0, 1000))
    def faults(self, share: float, seed: int) -> None:
        rng = random.Random(seed)

        def fault(kind: str, key: str) -> Fault | None:
            if kind not in CHANGING or rng.random() >= share:
                return None
            return rng.choice([Fault.REFUSE, Fault.LOSE])

        self.bucket.fault = fault

    @invariant()
    def view_is_right(self) -> None:
        assert self.run(self.lab.tree()) == self.model
        for path, content in self.model.items():
            assert (self.lab.kind(path) == Kind.DIRECTORY) == (content == FOLDER)

    def teardown(self) -> None:
        try:
            self.bucket.fault = lambda kind, key: None
            self.run(self.lab.side.flush(timeout_s=180))
            assert self.run(self.lab.tree()) == self.model
            assert self.lab.bucket_tree() == self.model
            assert self.bucket.uploads == {}
            assert not [key for key in self.bucket.objects if ".forebay" in key]
            assert self.lab.side.uploads.counts.conflicts == 0
            self.lab.side.state.validate()
            self.run(self.nothing_is_leaked())
        finally:
            self.run(self.lab.side.close())
            self.loop.close()
            shutil.rmtree(self.folder)


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
