"""What each policy is for, as hit rates of simulated reading."""

import random
from collections.abc import Iterable

import pytest

from forebay.cache.eviction import make_policy

SIZE = 128 * 1024
CAPACITY = 1000


def hit_rate(name: str, accesses: Iterable[int], warm: int) -> float:
    """The share of hits after the first `warm` accesses, in a tier of CAPACITY entries that evicts one for one."""
    policy = make_policy(name, CAPACITY * SIZE)
    entry_of: dict[int, int] = {}
    object_of: dict[int, int] = {}
    free = list(range(CAPACITY + 1))
    hits = asked = 0
    for number, wanted in enumerate(accesses):
        asked += number >= warm
        if wanted in entry_of:
            hits += number >= warm
            policy.hit(entry_of[wanted])
        elif policy.admit(free[-1], SIZE, identity=wanted * 0x9E3779B97F4A7C15 & (1 << 64) - 1):
            entry_of[wanted] = entry = free.pop()
            object_of[entry] = wanted
            if not free:
                victim = policy.victim()
                assert victim is not None
                policy.remove(victim)
                del entry_of[object_of.pop(victim)]
                free.append(victim)
    return hits / asked


def shuffled_passes(objects: int, passes: int, first: int = 0) -> list[int]:
    rng = random.Random(7)
    accesses: list[int] = []
    for _ in range(passes):
        order = list(range(first, first + objects))
        rng.shuffle(order)
        accesses += order
    return accesses


def test_shuffled_passes_over_twice_what_fits() -> None:
    accesses = shuffled_passes(2 * CAPACITY, passes=8)
    warm = 3 * 2 * CAPACITY
    epoch = hit_rate("epoch", accesses, warm)
    assert epoch > 0.40  # the tier is counted full at 90 %: 0.45 is all there is
    assert hit_rate("lru", accesses, warm) < epoch - 0.1


def test_ordered_passes_are_the_worst_case_of_recency() -> None:
    accesses = list(range(int(1.2 * CAPACITY))) * 6
    warm = int(3.6 * CAPACITY)
    assert hit_rate("lru", accesses, warm) == 0.0
    assert hit_rate("epoch", accesses, warm) > 0.7


def test_epoch_moves_on_to_another_data_set() -> None:
    accesses = shuffled_passes(900, 4) + shuffled_passes(900, 12, first=10_000)
    assert hit_rate("epoch", accesses, warm=len(accesses) - 1800) > 0.95


@pytest.mark.parametrize("name", ["s3fifo", "lru"])
def test_hot_objects_among_scans(name: str) -> None:
    """A tenth of the objects gets half of the asking, and scans go by: s3fifo keeps the hot ones, lru does not."""
    rng = random.Random(3)
    accesses = []
    for number in range(60_000):
        accesses.append(rng.randrange(600) if number % 4 == 0 else 10_000 + number)
    rate = hit_rate(name, accesses, warm=20_000)
    assert rate > 0.24 if name == "s3fifo" else rate < 0.15
