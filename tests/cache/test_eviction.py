"""Eviction policies: one conformance suite for all, and each against a plain model."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.cache.eviction import POLICIES, EpochPolicy, LruPolicy, Policy, S3FifoPolicy, TtlPolicy, make_policy
from forebay.cache.eviction.entry_lists import EntryLists
from forebay.errors import ConfigError

BLOCK = 4 * 1024 * 1024
CAPACITY = 64 * BLOCK


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return make_policy(request.param, CAPACITY)


class TestConformance:
    def test_every_entry_is_a_victim_once(self, policy: Policy) -> None:
        admitted = {entry for entry in range(50) if policy.admit(entry, BLOCK)}
        evicted = []
        while (victim := policy.victim()) is not None:
            policy.remove(victim)
            evicted.append(victim)
        assert sorted(evicted) == sorted(admitted)
        assert policy.victim() is None

    def test_victim_leaves_the_entry_in(self, policy: Policy) -> None:
        policy.admit(7, BLOCK)
        assert policy.victim() == 7
        assert policy.victim() == 7

    def test_pinned_entries_are_named_last(self, policy: Policy) -> None:
        for entry in range(20):
            policy.admit(entry, BLOCK)
        pinned = set(range(0, 20, 2))
        evicted = []
        for _ in range(10 + 2 * len(pinned)):
            victim = policy.victim()
            assert victim is not None
            if victim in pinned:
                policy.skip(victim)
            else:
                policy.remove(victim)
                evicted.append(victim)
            if len(evicted) == 10:
                break
        assert sorted(evicted) == list(range(1, 20, 2))

    @pytest.mark.parametrize("name", ["s3fifo", "lru", "ttl"])  # epoch: after two rounds without a hit
    def test_an_entry_whose_pin_ended_is_found_again(self, name: str) -> None:
        policy = make_policy(name, CAPACITY)
        policy.admit(0, BLOCK)
        policy.skip(0)
        for entry in range(1, 40):
            policy.admit(entry, BLOCK)
        seen = set()
        for entry in range(40, 400):
            victim = policy.victim()
            assert victim is not None
            policy.remove(victim)
            seen.add(victim)
            policy.admit(entry, BLOCK)
        assert 0 in seen

    def test_numbers_are_reused(self, policy: Policy) -> None:
        for _ in range(5):
            assert policy.admit(3, BLOCK)
            policy.hit(3)
            policy.remove(3)
        assert policy.victim() is None

    def test_hit_of_an_entry_removed_a_moment_ago_is_harmless(self, policy: Policy) -> None:
        policy.admit(1, BLOCK)
        policy.remove(1)
        policy.hit(1)
        assert policy.victim() is None
        policy.remove(1)

    def test_entries_found_at_restart_are_all_in(self, policy: Policy) -> None:
        policy.admit_many([], [])
        policy.admit_many(list(range(5000)), [BLOCK] * 5000)
        evicted = set()
        while (entry := policy.victim()) is not None:
            policy.remove(entry)
            evicted.add(entry)
        assert evicted == set(range(5000))

    def test_unknown_name_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="s3fifo, lru, ttl, epoch"):
            make_policy("arc", CAPACITY)

    @given(operations=st.lists(st.tuples(st.sampled_from("ahgrvs"), st.integers(0, 30)), max_size=200))
    @settings(max_examples=40, deadline=None)
    @pytest.mark.parametrize("name", POLICIES)
    def test_never_names_what_is_not_there(self, name: str, operations: list[tuple[str, int]]) -> None:
        policy = make_policy(name, 8 * BLOCK)
        present: set[int] = set()
        for operation, entry in operations:
            if operation == "a" and entry not in present:
                if policy.admit(entry, BLOCK // 4, identity=entry * 0x9E3779B97F4A7C15 & (1 << 64) - 1):
                    present.add(entry)
            elif operation == "h" and entry in present:
                policy.hit(entry)
            elif operation == "g" and entry in present:
                policy.grow(entry, BLOCK // 8)
            elif operation == "r":
                policy.remove(entry)
                present.discard(entry)
            elif operation in "vs":
                victim = policy.victim()
                assert (victim is None) == (not present)
                assert victim is None or victim in present
                if operation == "s" and victim is not None:
                    policy.skip(victim)
        for _ in range(len(present)):
            victim = policy.victim()
            assert victim in present
            policy.remove(victim)
            present.remove(victim)
        assert policy.victim() is None


class Model(Protocol):
    def admit(self, entry: int, now_s: float) -> None: ...
    def hit(self, entry: int) -> None: ...
    def remove(self, entry: int) -> None: ...
    def victim(self, now_s: float) -> int | None: ...


class LruModel:
    def __init__(self) -> None:
        self.order: OrderedDict[int, float] = OrderedDict()

    def admit(self, entry: int, now_s: float) -> None:
        self.order[entry] = now_s

    def hit(self, entry: int) -> None:
        self.order.move_to_end(entry)

    def remove(self, entry: int) -> None:
        self.order.pop(entry, None)

    def victim(self, now_s: float) -> int | None:
        return next(iter(self.order), None)


class TtlModel(LruModel):
    TTL_S = 10.0

    def victim(self, now_s: float) -> int | None:
        old = [entry for entry in self.order if now_s - self.order[entry] > self.TTL_S]
        return min(old, key=lambda entry: self.order[entry]) if old else super().victim(now_s)


@given(operations=st.lists(st.tuples(st.sampled_from("ahhrvt"), st.integers(0, 12)), max_size=150))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["lru", "ttl"])
def test_equals_its_model(kind: str, operations: list[tuple[str, int]]) -> None:
    now_s = 0.0
    clock: Callable[[], float] = lambda: now_s  # noqa: E731
    policy: Policy = LruPolicy() if kind == "lru" else TtlPolicy(TtlModel.TTL_S, clock)
    model: Model = LruModel() if kind == "lru" else TtlModel()
    present: set[int] = set()
    for operation, entry in operations:
        now_s += 1.0  # each at a time of its own: equal ages have no order
        if operation == "a" and entry not in present:
            policy.admit(entry, BLOCK)
            model.admit(entry, now_s)
            present.add(entry)
        elif operation == "h" and entry in present:
            policy.hit(entry)
            model.hit(entry)
        elif operation == "r":
            policy.remove(entry)
            model.remove(entry)
            present.discard(entry)
        elif operation == "t":
            now_s += entry
        assert policy.victim() == model.victim(now_s)


class TestS3Fifo:
    def fill(self, policy: S3FifoPolicy, first: int, count: int) -> None:
        for entry in range(first, first + count):
            policy.admit(entry, BLOCK, identity=entry + 1)

    def test_a_scan_does_not_push_out_what_is_used(self) -> None:
        policy = S3FifoPolicy(CAPACITY)
        self.fill(policy, 0, 20)
        self.fill(policy, 100, 2)  # time goes by
        for entry in range(20):
            policy.hit(entry)
        for entry in range(200, 400):
            if entry > 240:
                victim = policy.victim()
                assert victim is not None
                assert victim >= 100
                policy.remove(victim)
            policy.admit(entry, BLOCK, identity=entry + 1)

    def test_hits_right_after_the_fill_do_not_count(self) -> None:
        policy = S3FifoPolicy(CAPACITY * 100)
        self.fill(policy, 0, 1)
        for _ in range(4):  # one sequential pass over a block
            policy.hit(0)
        self.fill(policy, 1, 1)
        for _ in range(700):
            self.fill(policy, 2, 1)
            policy.remove(2)
        assert policy.victim() == 0

    def test_blocks_count_as_they_grow(self) -> None:
        policy = S3FifoPolicy(CAPACITY)
        for entry in range(100):
            policy.admit(entry, BLOCK // 64, identity=entry + 1)
        policy.hit(0)
        assert policy._small_units < policy._small_limit
        for entry in range(50):
            policy.grow(entry, BLOCK - BLOCK // 64)
        assert policy._small_units > policy._small_limit
        while policy.victim() is not None:
            policy.remove(policy.victim() or 0)
        assert policy._small_units == 0

    def test_who_comes_back_enters_the_main_queue(self) -> None:
        policy = S3FifoPolicy(CAPACITY)
        self.fill(policy, 0, 1)
        policy.remove(0)
        policy.admit(0, BLOCK, identity=1)  # a ghost
        self.fill(policy, 1, 30)
        evicted = []
        for _ in range(20):
            victim = policy.victim()
            assert victim is not None
            policy.remove(victim)
            evicted.append(victim)
        assert 0 not in evicted

    def test_ghosts_survive_growing(self) -> None:
        policy = S3FifoPolicy(CAPACITY)
        self.fill(policy, 0, 1)
        policy.remove(0)
        self.fill(policy, 10, 5000)
        assert policy._take_ghost(1)


class TestEpoch:
    def test_refuses_when_full_and_names_no_victim_by_itself(self) -> None:
        policy = EpochPolicy(10 * BLOCK)
        assert [policy.admit(entry, BLOCK) for entry in range(12)] == [True] * 9 + [False] * 3

    def test_makes_room_for_another_data_set(self) -> None:
        policy = EpochPolicy(100 * BLOCK)
        entry, admitted, free = 0, 0, list(range(1000))
        for _ in range(3000):  # nothing that is there is asked for
            entry = free.pop()
            if policy.admit(entry, BLOCK):
                admitted += 1
                if admitted > 90:
                    victim = policy.victim()
                    assert victim is not None
                    policy.remove(victim)
                    free.append(victim)
            else:
                free.append(entry)
        assert admitted >= 180


def test_lists_keep_order_and_membership() -> None:
    lists = EntryLists(2)
    lists.append(0, 5)
    lists.extend(0, [9, 2, 4000])
    lists.append(1, 1)
    assert lists.first(0) == 5
    assert lists.discard(5)
    assert not lists.discard(5)
    assert not lists.discard(100_000)
    assert [lists.first(0), lists.first(1), 9 in lists, 5 in lists] == [9, 1, True, False]
    lists.discard(9)
    lists.append(0, 9)
    order = []
    while (entry := lists.first(0)) is not None:
        order.append(entry)
        lists.discard(entry)
    assert order == [2, 4000, 9]
