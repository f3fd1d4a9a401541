"""Two write sides on one bucket, against a dict: in turn with crashes of either, and both at once on the same names.

`FOREBAY_STEPS=2000 FOREBAY_SEED=5 pytest tests/write/test_shared_model.py` walks further.
"""

import asyncio
import errno
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forebay.cache.write.records.mongo import MongoRecords
from forebay.cache.write.write_side import Place
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.servers import MongoServer
from forebay.tests.support.write_lab import FOLDER, PLAIN, Lab

MIB = 1024 * 1024
STEPS = int(os.environ.get("FOREBAY_STEPS", "60"))
SEED = int(os.environ.get("FOREBAY_SEED", "3"))
LEASE_S = 2.0
SIZES = [0, 1, 10, 17, 100, 5_000, 70_000, 6 * MIB]
WEIGHTS = [1, 1, 4, 4, 4, 2, 2, 0.3]
OPTIONS: dict[str, Any] = {
    "inline_bytes": 16, "part_bytes": 5 * MIB, "recheck_s": 0.2, "lease_s": LEASE_S,
    "high_watermark_bytes": 100_000, "low_watermark_bytes": 20_000, "max_clean_records": 4,
}  # fmt: skip
Tree = dict[bytes, bytes | str]

# What a step may be told where the other side was first.
REFUSALS = {errno.ENOENT, errno.EEXIST, errno.ESTALE, errno.EINVAL, errno.ENOTDIR, errno.EISDIR}

_names = itertools.count()


@dataclass
class Pair:
    """Two write sides that look like ones of different machines to each other."""

    folder: Path
    bucket: MultipartBucket
    new_records: Callable[[], MongoRecords]
    labs: list[Lab] = field(default_factory=list)
    started: int = 0

    async def start(self) -> Lab:
        records = await asyncio.to_thread(self.new_records)
        lab = Lab.new(self.folder, self.bucket, records=records, what=f"side {self.started}", **OPTIONS)
        writers = lab.side.writers
        assert writers is not None
        writers.me = msgspec.structs.replace(writers.me, place=f"machine {self.started}", host="far")
        self.started += 1
        await lab.begin()
        return lab

    async def look(self) -> None:
        for lab in self.labs:
            assert lab.side.freshness is not None
            await lab.side.freshness.look()

    async def views_are(self, expected: Tree) -> None:
        await self.look()
        for lab in self.labs:
            with lab.side.ledger.locked() as state:
                state.validate()
            assert await lab.tree() == expected

    async def bucket_is(self, expected: Tree, by: int = 0) -> None:
        """After a flush by one side, and the second look at keys of requests that had no answer, for which it does not wait."""
        await self.labs[by].side.flush(timeout_s=120)
        async with asyncio.timeout(120):
            while any(lab.side.state.doomed for lab in self.labs):
                await asyncio.sleep(0.02)
                await self.look()
        assert self.labs[0].bucket_tree() == expected

    async def nothing_is_left_over(self, expected: Tree) -> None:
        """Everything is in the bucket, and nothing else is anywhere."""
        self.bucket.fault = lambda kind, key: None
        for lab in self.labs:
            lab.side.writeback.retry_now()
        await self.bucket_is(expected)
        await self.views_are(expected)
        assert self.bucket.uploads == {}
        assert sum(lab.side.uploads.counts.conflicts for lab in self.labs) == 0
        while len(self.labs) > 1:
            await self.labs.pop().end()
        (last,) = self.labs
        async with asyncio.timeout(60):
            while not last.side.does_writeback or self._strays(last):  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0.05)

    def _strays(self, lab: Lab) -> set[str]:
        """Data that no record names (garbage of writers that died goes when the writeback is taken over), and unfinished business."""
        state = lab.side.state
        nodes = [node for node in state.by_id.values() if node.data]
        files = {node.data for node in nodes if not node.inline}
        inline = {node.data for node in nodes if node.inline}
        strays = set(lab.side.tier.names()) ^ files
        strays |= set(lab.side.records.inline_names()) ^ inline
        return strays | set(state.attempts) | {os.fsdecode(key) for key in state.doomed}


@pytest.fixture
async def pair(tmp_path: Path, mongo: MongoServer) -> AsyncIterator[Pair]:
    name = f"pair-{os.getpid()}-{next(_names)}"
    pair = Pair(tmp_path / "tier", MultipartBucket(page_keys=3), lambda: MongoRecords(mongo.url, name))
    for _ in range(2):
        pair.labs.append(await pair.start())
    yield pair
    for lab in pair.labs:
        if not lab.is_ended:
            await lab.end()


# --- In turn. ----------------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """Random steps of a model, each taken by one side."""

    rng: random.Random
    model: Tree = field(default_factory=dict)

    def path(self, *, folder: bool) -> bytes:
        """A name in some folder: of files and of folders the same ones, so that they meet."""
        above = self.rng.choice([b"", *(path + b"/" for path in self.model if self.model[path] == FOLDER)])
        if above.count(b"/") > 2:
            above = b""
        return above + self.rng.choice([b"x", b"y", b"z"] if folder else [b"a", b"b", b"x"])

    def content(self) -> bytes:
        return self.rng.randbytes(self.rng.choices(SIZES, WEIGHTS)[0])

    def children(self, path: bytes) -> list[bytes]:
        return [one for one in self.model if one.startswith(path + b"/")]

    def step(self, lab: Lab) -> str:
        """One step that makes sense; what it was, for messages."""
        while True:
            action = self.rng.choice(
                ["write", "write", "append", "patch", "truncate", "unlink", "mkdir", "mkdir", "rmdir", "move", "move"]
            )
            files = [path for path in self.model if self.model[path] != FOLDER]
            folders = [path for path in self.model if self.model[path] == FOLDER]
            if action == "write":
                path, data = self.path(folder=False), self.content()
                if self.model.get(path) == FOLDER:
                    continue
                lab.write(path, data)
                self.model[path] = data
                return f"write {path!r} {len(data)}"
            if action == "mkdir":
                path = self.path(folder=True)
                if path in self.model:
                    continue
                lab.mkdir(path)
                self.model[path] = FOLDER
                return f"mkdir {path!r}"
            if action == "rmdir":
                empty = [path for path in folders if not self.children(path)]
                if not empty:
                    continue
                path = self.rng.choice(empty)
                lab.rmdir(path)
                del self.model[path]
                return f"rmdir {path!r}"
            if action == "move":
                if not self.model:
                    continue
                old = self.rng.choice(list(self.model))
                if self._move(lab, old, self.path(folder=self.model[old] == FOLDER)):
                    return f"move {old!r}"
                continue
            if not files:
                continue
            path = self.rng.choice(files)
            self._change(lab, action, path)
            return f"{action} {path!r}"

    def _move(self, lab: Lab, old: bytes, new: bytes) -> bool:
        is_folder = self.model[old] == FOLDER
        if old == new or new.startswith(old + b"/") or old.startswith(new + b"/"):
            return False
        if new in self.model and ((self.model[new] == FOLDER) != is_folder or self.children(new)):
            return False
        lab.rename(old, new)
        moved = {one: self.model.pop(one) for one in [old, *self.children(old)]}
        self.model.update({new + one[len(old) :]: data for one, data in moved.items()})
        return True

    def _change(self, lab: Lab, action: str, path: bytes) -> None:
        old = self.model[path]
        assert isinstance(old, bytes)
        if action == "unlink":
            lab.unlink(path)
            del self.model[path]
        elif action == "truncate":
            size = self.rng.choice([0, len(old) // 2, len(old) + 30])
            lab.truncate(path, size)
            self.model[path] = old[:size].ljust(size, b"\0")
        else:
            offset = len(old) if action == "append" else self.rng.randrange(len(old) + 20)
            data = self.content()[:60_000]
            lab.patch(path, offset, data)
            if data:
                self.model[path] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


async def test_two_sides_in_turn_show_what_was_acked_whichever_is_killed(pair: Pair) -> None:
    rng = random.Random(SEED)
    for path in ("x/listed", "x/y/deep"):
        pair.bucket.write(path, path.encode())
    walk = Walk(rng, {b"x": FOLDER, b"x/listed": b"x/listed", b"x/y": FOLDER, b"x/y/deep": b"x/y/deep"})
    done = []
    for number in range(STEPS):
        event = rng.random()
        at = rng.randrange(2)
        if event < 0.03:
            await pair.labs[at].crash()
            pair.labs[at] = await pair.start()
            done.append(f"kill {at}")
        elif event < 0.06:
            await pair.labs[at].end()
            pair.labs[at] = await pair.start()
            done.append(f"remount {at}")
        elif event < 0.09:
            share = rng.choice([0.0, 0.3, 0.6])
            luck = random.Random(number)

            def fault(kind: str, key: str, share: float = share, luck: random.Random = luck) -> Fault | None:
                if kind in ("list", "get") or luck.random() >= share:
                    return None
                return luck.choice([Fault.REFUSE, Fault.LOSE])

            pair.bucket.fault = fault
        await pair.look()
        done.append(f"{at}: {await asyncio.to_thread(walk.step, pair.labs[at])}")
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.05)  # let the writeback go on for a moment
        try:
            await pair.views_are(walk.model)
        except BaseException:
            print(f"seed {SEED}:", *done[-30:], sep="\n")
            raise
        if event > 0.93:
            pair.bucket.fault = lambda kind, key: None
            await pair.bucket_is(walk.model, by=1 - at)
    await pair.nothing_is_left_over(walk.model)


# --- At once. ----------------------------------------------------------------------------------------------------


PLACES = [b"d0", b"d1", b"d2", b"d0-moved", b"d1-moved", b"d0/in"]


@dataclass
class Worker:
    """Takes steps on one side without knowing what the other does; counts what succeeded."""

    lab: Lab
    number: int
    rng: random.Random
    acked: set[bytes] = field(default_factory=set)
    created: int = 0
    deleted: int = 0

    def work(self) -> None:
        for turn in range(STEPS):
            action = self.rng.choice(
                [self.create, self.create, self.move_file, self.unlink, self.unlink, self.move_folder]
            )
            try:
                action(turn)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise

    def name(self) -> bytes:
        return self.rng.choice(PLACES) + b"/" + self.rng.choice([b"a", b"b"])

    def at(self, path: bytes) -> Place:
        """The path as a mount gives it: it looks the folder up first."""
        place = self.lab.place(path)
        if b"/" in path and isinstance(place, bytes):
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        return place

    def create(self, turn: int) -> None:
        data = b"%d/%d " % (self.number, turn) * self.rng.choice([1, 3, 2_000])
        name = self.name()
        file = self.lab.side.create(self.at(name), PLAIN, self.lab.shown(name))
        self.created += 1
        file.write(0, data)
        file.release()  # ESTALE if the other has deleted it by now
        self.acked.add(data)

    def move_file(self, turn: int) -> None:
        self.move(self.name(), self.name())

    def move_folder(self, turn: int) -> None:
        self.move(self.rng.choice(PLACES), self.rng.choice(PLACES))

    def move(self, old: bytes, new: bytes) -> None:
        lab = self.lab
        lab.side.rename(self.at(old), self.at(new), lab.shown(old), lab.shown(new), replace=False)

    def unlink(self, turn: int) -> None:
        name = self.name()
        self.lab.side.unlink(self.at(name), self.lab.shown(name))
        self.deleted += 1


async def test_two_sides_at_once_lose_double_and_resurrect_nothing(pair: Pair) -> None:
    """No order is known, but the sum is: what was created, less what was deleted, each once and whole."""
    for path in PLACES[:3]:
        pair.labs[0].mkdir(path)
    workers = [Worker(lab, number, random.Random(SEED + number)) for number, lab in enumerate(pair.labs)]
    await asyncio.gather(*(asyncio.to_thread(worker.work) for worker in workers))
    await pair.look()
    tree = await pair.labs[0].tree()
    found = [data for data in tree.values() if data != FOLDER]
    assert len(found) == len(set(found)) == sum(worker.created - worker.deleted for worker in workers)
    assert set(found) <= workers[0].acked | workers[1].acked
    assert sum(data == FOLDER for data in tree.values()) == 3
    assert all(worker.acked for worker in workers)
    assert any(worker.deleted for worker in workers)
    await pair.nothing_is_left_over(tree)
