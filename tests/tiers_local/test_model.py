"""Random histories of a tier against a dictionary, with evictions, reopening and crashes (an abandoned tier)."""

import gc
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forebay.errors import TierFull
from forebay.tests.support import leftovers
from forebay.tests.tiers_local.content import content_of, version_of
from forebay.tests.tiers_local.policies import RandomPolicy
from forebay.tiers.local import LocalTier, TierOptions
from forebay.tiers.local.tier import allocated_below
from forebay.tiers.version import BLOCK_BYTES, CHUNK_BYTES, ObjectVersion

MIB = 1024 * 1024
CAPACITY_BYTES = 16 * MIB
SMALL = [1, 700, 4096, 5000, 33_000, 110_000, 400_000, MIB]
LARGE = [MIB + 1, 2 * MIB + 777, BLOCK_BYTES, BLOCK_BYTES + CHUNK_BYTES, 9 * MIB + 1234]
VERSIONS = [version_of(f"k{i}", size, etag) for i, size in enumerate(SMALL * 3 + LARGE * 2) for etag in ("old", "new")]


class TierMachine(RuleBasedStateMachine):
    """`written` is the model: what was ever brought in and not dropped. A tier may hold less (it evicts), never other."""

    @initialize(on_tmpfs=st.booleans(), seed=st.integers(0, 1000))
    def start(self, on_tmpfs: bool, seed: int) -> None:
        self.folder = Path(
            tempfile.mkdtemp(dir=leftovers.shm_folder() if on_tmpfs else None, prefix="forebay-tier-model-")
        )
        self.seed = seed
        self.written: dict[ObjectVersion, set[int]] = {}
        self.tier = self.open()

    def open(self) -> LocalTier:
        options = TierOptions("ssd", self.folder / "tier", CAPACITY_BYTES, free_space_ratio=0.0, max_open_files=16)
        return LocalTier.open(options, RandomPolicy(self.seed), on_evict=self.on_evict)

    def on_evict(self, version: ObjectVersion, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert data == content_of(version)[offset : offset + len(data)]

    @rule(version=st.sampled_from(VERSIONS), start=st.integers(0, 300), count=st.integers(1, 200))
    def write(self, version: ObjectVersion, start: int, count: int) -> None:
        data = content_of(version)
        if version.is_small:
            offset, piece = 0, data
        else:
            offset = start * CHUNK_BYTES % version.size // CHUNK_BYTES * CHUNK_BYTES
            piece = data[offset : offset + count * CHUNK_BYTES]
        try:
            self.tier.write(version, offset, piece)
        except TierFull:
            return
        chunks = range(offset // CHUNK_BYTES, -(-(offset + len(piece)) // CHUNK_BYTES))
        self.written.setdefault(version, set()).update(chunks)
        assert self.tier.read(version, offset, len(piece)) == piece

    @rule(version=st.sampled_from(VERSIONS), at=st.floats(0, 1), size=st.integers(1, 5 * MIB))
    def read(self, version: ObjectVersion, at: float, size: int) -> None:
        offset = int(at * (version.size - 1))
        found = self.tier.read(version, offset, size)
        gaps = self.tier.missing(version, offset, size)
        assert (found is None) == bool(gaps)
        if found is not None:
            assert found == content_of(version)[offset : offset + size]
            last = min(offset + size, version.size) - 1
            assert set(range(offset // CHUNK_BYTES, last // CHUNK_BYTES + 1)) <= self.written[version]

    @rule(version=st.sampled_from(VERSIONS))
    def drop(self, version: ObjectVersion) -> None:
        held = self.tier.cached_bytes(version)
        assert self.tier.drop(version) == held
        self.written.pop(version, None)
        assert self.tier.read(version, 0, 1) is None

    @rule(version=st.sampled_from(VERSIONS))
    def account(self, version: ObjectVersion) -> None:
        parts = self.tier.missing(version, 0, version.size)
        assert self.tier.cached_bytes(version) + sum(size for _, size in parts) == version.size

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        before = {version: self.tier.cached_bytes(version) for version in VERSIONS}
        if crash:  # without close: what a killed process leaves is what the kernel has
            self.tier._folder.close()
            del self.tier
            gc.collect()
        else:
            self.tier.close()
        self.tier = self.open()
        assert {version: self.tier.cached_bytes(version) for version in VERSIONS} == before

    @invariant()
    def accounts_hold(self) -> None:
        if hasattr(self, "tier"):
            self.tier.validate()
            assert allocated_below(self.folder / "tier") <= CAPACITY_BYTES
            assert self.tier.stats().corrupt == 0

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            if hasattr(self, "tier"):
                for version in VERSIONS:
                    found = self.tier.read(version, 0, version.size)
                    assert found is None or found == content_of(version)
                self.tier.close()
        finally:
            shutil.rmtree(self.folder)


TestTier = TierMachine.TestCase
TestTier.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTier.pytestmark = [pytest.mark.timeout(600)]  # type: ignore[attr-defined]
