"""kill -9 at any moment leaves misses, never wrong bytes, and no space that nobody accounts for."""

import random
import subprocess
import sys
import time
from pathlib import Path

from forebay.tests.tiers_local import writer_child
from forebay.tests.tiers_local.content import content_of
from forebay.tiers.local.tier import allocated_below

ROUNDS = 8


def test_everything_found_after_kill_9_is_the_truth(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    choose = random.Random(5)
    found_bytes = 0
    for seed in range(ROUNDS):
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay.tests.tiers_local.writer_child", str(folder), str(seed)],
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            time.sleep(choose.uniform(0.02, 0.4))  # the moment of the kill is what varies; nothing waits for it
            assert process.poll() is None, "the writer ended by itself"
        finally:
            process.kill()
            process.communicate()
        tier = writer_child.open_tier(folder)
        try:
            tier.validate()
            for version in writer_child.versions():
                for block in range(version.block_count):
                    start, size = version.block_range(block)
                    for offset, length in [(start, size), (start + size // 2, 4096)]:
                        found = tier.read(version, offset, length)
                        if found is not None:
                            assert found == content_of(version)[offset : offset + length]
                            found_bytes += length
                assert (
                    tier.cached_bytes(version) + sum(s for _, s in tier.missing(version, 0, version.size))
                    == version.size
                )
            assert tier.stats().corrupt == 0
            tier.validate()
            assert tier.stats().used_bytes <= writer_child.CAPACITY_BYTES
            for version in writer_child.versions():
                tier.drop(version)
            left = allocated_below(folder / "slabs") + allocated_below(folder / "extents")
            assert left < 3 * 1024 * 1024, "a crash leaked space that dropping everything does not give back"
            tier.validate()
            for version in writer_child.versions()[:30]:
                tier.write(version, 0, content_of(version))
        finally:
            tier.close()
    assert found_bytes > 20 * 1024 * 1024, "too little survived to prove anything"
