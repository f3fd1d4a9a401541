"""A process that makes versions and collects garbage until it is killed: run by test_crashes.py.

    python -m forebay.tests.snapshots.crasher URL SEED

It prints `published NAME@vN COUNT` after each version, and works on pages so small that every operation has many steps.
"""

import random
import sys

from forebay.snapshots import Entry, Repository, batch_of, builder, open_repository, puts, removals
from forebay.snapshots.metastore import MetaStore
from forebay.tiers.version import ObjectVersion

DATASET = "d"


def rows(label: str, numbers: list[int]) -> list[Entry]:
    return [Entry(f"{i:05}", ObjectVersion("s3://b", f"{i:05}", label, i)) for i in sorted(numbers)]


def step(repo: Repository, chance: random.Random, label: str) -> None:
    kind = chance.random()
    if kind < 0.3:
        numbers = chance.sample(range(3000), 1500)
        batches = [batch_of(rows(label, numbers)[at : at + 100]) for at in range(0, 1500, 100)]
        made = repo.create(DATASET, batches)
    elif kind < 0.8:
        numbers = chance.sample(range(3000), 40)
        if chance.random() < 0.7 or repo.dataset(DATASET).branches == {}:
            made = repo.edit(DATASET, [puts(batch_of(rows(label, numbers)))]).made
        else:
            paths = batch_of(rows(label, numbers)).column("path")
            made = repo.edit(DATASET, [removals(paths)]).made
    else:
        # A branch that comes and goes, so that there is garbage to collect.
        repo.create(DATASET, [batch_of(rows(label, chance.sample(range(3000), 200)))], branch="scratch")
        repo.delete_ref(DATASET, "branch", "scratch")
        collector = repo.collector(grace_s=0)
        collector.mark()
        collector.sweep()
        return
    snapshot = made.snapshot
    print(f"published {snapshot.version_name} {snapshot.commit.entry_count}", flush=True)


def collect(meta: MetaStore) -> None:
    collector = Repository(meta).collector(grace_s=0)
    collector.mark()
    collector.sweep()


def main() -> None:
    url, seed = sys.argv[1:]
    builder.MIN_ENTRIES, builder.MAX_ENTRIES, builder.CUT_ONE_IN = 8, 64, 16
    builder.MIN_REFS, builder.CUT_REFS_ONE_IN = 4, 8
    chance = random.Random(int(seed))
    with open_repository(url) as repo:
        repo.ensure_dataset(DATASET)
        print("ready", flush=True)
        number = 0
        while True:
            number += 1
            step(repo, chance, f"{seed}-{number}")


if __name__ == "__main__":
    main()
