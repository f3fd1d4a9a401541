"""A long random life of a live view, compared with a model: the history of the bucket, and what the kernel holds.

Whatever is answered was true in the bucket at some moment of the last `metadata_ttl_s` (in an outage: at any moment
before it), an inode never changes its meaning while it is held, and in the end nothing is left.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forebay.cache.namespace import Namespace, NamespaceOptions
from forebay.errors import StoreError, StoreUnavailable
from forebay.fuse_mount.live_view import LiveView
from forebay.fuse_mount.view import ROOT_INO, Absent, Directory, Kind, Node
from forebay.tests.support.memory_bucket import MemoryBucket, etag_of

T = TypeVar("T")

TTL_S = 10.0
NAMES = ["a", "b", "c"]
KEYS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join) | st.sampled_from(
    ["a//b", "b/", "a/../b", "k1", "k2", "k3", "k4", "k5"]
)
PATHS = st.lists(st.sampled_from([*NAMES, "k1", "k2", "k5"]), min_size=1, max_size=3).map("/".join)


class Held(NamedTuple):
    """What an inode of the kernel means: a folder (etag None) or one version of a file."""

    path: str
    etag: str | None


class Life(RuleBasedStateMachine):
    page_keys = 1000

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now_s = 1000.0
        self.bucket = MemoryBucket(page_keys=self.page_keys)
        self.history: list[tuple[float, dict[str, bytes]]] = [(0.0, {})]
        self.names = Namespace(
            self.bucket,
            "",
            NamespaceOptions(metadata_ttl_s=TTL_S, max_listing_bytes=4000),
            clock=lambda: self.now_s,
        )
        self.view = LiveView(self.names)
        self.held: dict[int, Held] = {ROOT_INO: Held("", None)}
        self.lookups: dict[int, int] = {}
        self.directories: list[tuple[Directory, str, list[dict[str, bytes]]]] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    # --- The bucket. --------------------------------------------------------------------------------------------

    @rule(key=KEYS, content=st.sampled_from([b"", b"1", b"2", b"33"]))
    def put(self, key: str, content: bytes) -> None:
        self.bucket.objects[key] = content
        self.history.append((self.now_s, dict(self.bucket.objects)))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.bucket.objects.pop(key, None)
        self.history.append((self.now_s, dict(self.bucket.objects)))

    @rule(passed_s=st.sampled_from([0.6, 3.0, 9.0, 11.0]))
    def wait(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(down=st.booleans())
    def outage(self, down: bool) -> None:
        self.bucket.failure = StoreUnavailable("down") if down else None

    # --- The kernel. --------------------------------------------------------------------------------------------

    @rule(path=PATHS)
    def look_up(self, path: str) -> None:
        parent = ROOT_INO
        walked = ""
        for name in path.split("/"):
            walked = f"{walked}/{name}".lstrip("/")
            try:
                answer = self.view.peek(parent, name.encode())
                if answer is None:
                    answer = self.run(self.view.lookup(parent, name.encode()))
            except StoreError:
                assert self.bucket.failure is not None
                return
            meaning = self.meaning(answer, walked)
            assert meaning in {entry_at(state, walked) for state in self.possible()}, walked
            if not isinstance(answer, Node) or answer.kind is Kind.FILE:
                return
            parent = answer.ino

    @rule(plus=st.booleans(), data=st.data())
    def list_folder(self, plus: bool, data: st.DataObject) -> None:
        folders = [ino for ino, held in self.held.items() if held.etag is None]
        ino = data.draw(st.sampled_from(folders))
        path = self.held[ino].path
        try:
            directory = self.run(self.view.open_directory(ino))
        except StoreError:
            assert self.bucket.failure is not None
            return
        states = self.possible()
        self.directories = [*self.directories[-3:], (directory, path, states)]
        self.read(directory, path, states, plus=plus)

    @rule(data=st.data(), plus=st.booleans())
    def read_again(self, data: st.DataObject, plus: bool) -> None:
        """An open directory says the same later, whatever happened."""
        if self.directories:
            directory, path, states = data.draw(st.sampled_from(self.directories))
            self.read(directory, path, states, plus=plus)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        inos = sorted(self.lookups)
        if not inos:
            return
        ino = data.draw(st.sampled_from(inos))
        path = self.held[ino].path
        if self.held[ino].etag is None and any(h.path.startswith(f"{path}/") for h in self.held.values()):
            return  # the kernel holds a folder for as long as it holds something in it
        count = data.draw(st.integers(1, self.lookups[ino]))
        self.drop(ino, count)

    @invariant()
    def what_is_held_means_what_it_meant(self) -> None:
        self.view.validate()
        assert self.view.inodes_held == len(self.lookups) + 1
        for ino, held in self.held.items():
            assert self.view.path(ino).decode() == held.path
            node = self.view.node(ino)
            assert (node.kind is Kind.DIRECTORY) == (held.etag is None)
            if held.etag is not None:
                version = self.view.version(ino)
                assert (version.key, version.etag, version.size) == (held.path, held.etag, node.size)

    def teardown(self) -> None:
        for ino in sorted(self.lookups, key=lambda ino: -len(self.held[ino].path)):
            self.drop(ino, self.lookups[ino])
        self.view.validate()
        assert self.view.inodes_held == 1
        self.run(self.names.close())
        self.loop.close()

    # --- The model. ---------------------------------------------------------------------------------------------

    def possible(self) -> list[dict[str, bytes]]:
        """The states of the bucket that an answer may come from now."""
        since_s = self.now_s - TTL_S
        if self.bucket.failure is not None or self.names.stats().stale_since_s is not None:
            since_s = 0.0
        ends = [*(time_s for time_s, _ in self.history[1:]), float("inf")]
        return [state for (_, state), end_s in zip(self.history, ends, strict=True) if end_s >= since_s]

    def read(self, directory: Directory, path: str, states: list[dict[str, bytes]], *, plus: bool) -> None:
        entries = list(directory.read(0, plus=plus))
        shown = {entry.name.decode(): entry.node.kind is Kind.DIRECTORY for entry in entries}
        assert len(shown) == len(entries)
        assert shown in [folder_at(state, path) for state in states], path
        if plus:
            for entry in entries:
                below = f"{path}/{entry.name.decode()}".lstrip("/")
                meaning = self.meaning(entry.node, below)
                assert meaning in {entry_at(state, below) for state in states}

    def meaning(self, answer: Node | Absent, path: str) -> str | None:
        """`folder`, an etag, or None; counts the lookup, and checks that the inode means nothing else."""
        if not isinstance(answer, Node):
            return None
        etag = None if answer.kind is Kind.DIRECTORY else self.view.version(answer.ino).etag
        held = self.held.setdefault(answer.ino, Held(path, etag))
        assert held == Held(path, etag)
        self.lookups[answer.ino] = self.lookups.get(answer.ino, 0) + 1
        return etag or "folder"

    def drop(self, ino: int, count: int) -> None:
        self.view.forget(ino, count)
        self.lookups[ino] -= count
        if not self.lookups[ino]:
            del self.lookups[ino], self.held[ino]


class LifeInLargeFolders(Life):
    """The same where every folder of more than two entries is large: names are asked for one by one."""

    page_keys = 2


def entry_at(state: Mapping[str, bytes], path: str) -> str | None:
    """What a path is: `folder`, the etag of a file, or None. The folder wins."""
    if any(key.startswith(f"{path}/") for key in state):
        return "folder"
    return etag_of(state[path]) if path in state else None


def folder_at(state: Mapping[str, bytes], path: str) -> dict[str, bool]:
    """Names in a folder that a path can name, and which are folders."""
    prefix = f"{path}/" if path else ""
    names = {key[len(prefix) :].partition("/")[0] for key in state if key.startswith(prefix)}
    below = {name: f"{prefix}{name}" for name in names if name not in ("", ".", "..")}
    return {name: entry_at(state, whole) == "folder" for name, whole in below.items()}


_SETTINGS = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase
TestLife.settings = _SETTINGS
TestLifeInLargeFolders = LifeInLargeFolders.TestCase
TestLifeInLargeFolders.settings = _SETTINGS
