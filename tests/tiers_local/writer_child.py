"""A process that fills a tier until it is killed: `python -m forebay.tests.tiers_local.writer_child FOLDER SEED`.

Prints one line when it has begun to write, so that its killer knows that there is something to kill.
"""

import random
import sys
import threading
from pathlib import Path

from forebay.tests.tiers_local.content import content_of, version_of
from forebay.tests.tiers_local.policies import RandomPolicy
from forebay.tiers.local import LocalTier, TierOptions
from forebay.tiers.version import CHUNK_BYTES, ObjectVersion

MIB = 1024 * 1024
CAPACITY_BYTES = 24 * MIB
NAMES = 60


def versions() -> list[ObjectVersion]:
    """The objects that may be found in the folder afterwards."""
    sizes = [300, 3000, 30_000, 110_000, 700_000, 2 * MIB + 99, 6 * MIB + 5]
    return [version_of(f"k{i}", sizes[i % len(sizes)], f"e{i % 3}") for i in range(NAMES)]


def open_tier(folder: Path) -> LocalTier:
    options = TierOptions("ssd", folder, CAPACITY_BYTES, free_space_ratio=0.0, owner="a test")
    return LocalTier.open(options, RandomPolicy())


def work(tier: LocalTier, seed: int) -> None:
    """Write, read and drop at random, for ever."""
    choose = random.Random(seed)
    names = versions()
    while True:
        version = choose.choice(names)
        data = content_of(version)
        if choose.random() < 0.15:
            tier.drop(version)
        elif version.is_small:
            tier.write(version, 0, data)
        else:
            offset = choose.randrange(0, version.size) // CHUNK_BYTES * CHUNK_BYTES
            tier.write(version, offset, data[offset : offset + choose.choice([1, 8, 40, 200]) * CHUNK_BYTES])


def main() -> None:
    tier = open_tier(Path(sys.argv[1]))
    seed = int(sys.argv[2])
    workers = [threading.Thread(target=work, args=(tier, seed * 10 + i), daemon=True) for i in range(2)]
    for worker in workers:
        worker.start()
    print("writing", flush=True)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
