"""kill -9 at random moments of imports, edits and gc: what was published is there and whole, the rest is only garbage."""

import random
import subprocess
import sys
import threading

from forebay.snapshots import Repository, open_repository
from forebay.snapshots.holds import page_ids
from forebay.tests.snapshots.crasher import DATASET, collect

ROUNDS = 4


def run_and_kill(url: str, seed: int, lines_wanted: int, delay_s: float) -> list[str]:
    """What the crasher printed until it was killed: `delay_s` after its n-th line, so in the middle of a later step."""
    command = [sys.executable, "-m", "forebay.tests.snapshots.crasher", url, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                lines.append(line.strip())
                if len(lines) == lines_wanted:
                    killer = threading.Timer(delay_s, process.kill)
                    killer.start()
        finally:
            watchdog.cancel()
            process.kill()
        assert process.wait() == -9, process.stderr.read()
    return lines


def test_kill_9_loses_nothing_that_was_published(meta_url: str) -> None:
    chance = random.Random(5)
    published: dict[str, int] = {}
    for seed in range(ROUNDS):
        lines = run_and_kill(meta_url, seed, chance.randrange(2, 6), chance.uniform(0.0, 0.15))
        assert lines[0] == "ready"
        for line in lines[1:]:
            _, name, entry_count = line.split()
            published[name] = int(entry_count)
        with open_repository(meta_url) as repo:
            for name, count in published.items():
                assert sum(batch.num_rows for batch in repo.resolve(name).batches()) == count
    assert len(published) >= ROUNDS
    with open_repository(meta_url) as repo:
        # Leases of the killed are still there; they hold what they hold, and no more than that.
        for lease in repo.leases():
            repo.meta.drop_lease(lease.id)
        collect(repo.meta)
        reachable = {
            name
            for snapshot in Repository(repo.meta).versions(DATASET)
            for name, _ in page_ids(repo.reader, snapshot.root)
        }
        assert {state.id for state in repo.meta.page_states()} == reachable
        assert all(s.number for s in repo.versions(DATASET))
        for name, count in published.items():
            assert repo.resolve(name).commit.entry_count == count
