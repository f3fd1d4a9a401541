"""The byte budget: bounded at every moment, in order, and nothing lost by cancelling."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.cache.budget import ByteBudget


async def test_those_that_wait_are_served_in_order() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    order: list[int] = []

    async def take(number: int, size: int) -> None:
        await budget.take(size)
        order.append(number)

    tasks = [asyncio.create_task(take(number, size)) for number, size in enumerate([5, 1, 4])]
    await asyncio.sleep(0)
    assert not budget.try_take(1), "not ahead of those that wait"
    budget.give(8)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    assert budget.taken_bytes == 10


async def test_what_is_too_large_for_the_limit_passes_alone() -> None:
    budget = ByteBudget(10)
    await budget.take(1)
    task = asyncio.create_task(budget.take(50))
    await asyncio.sleep(0)
    assert not task.done()
    budget.give(1)
    await task
    assert budget.taken_bytes == 50
    assert not budget.try_take(1)


async def test_kept_bytes_go_oldest_first_when_room_is_needed() -> None:
    budget = ByteBudget(10)
    gone: list[str] = []
    for name in "ab":
        await budget.take(4)
        budget.keep(name, 4, lambda name=name: gone.append(name))  # type: ignore[misc]
    await budget.take(3)
    assert gone == ["a"]
    budget.give_up("a")
    budget.give_up("b")
    assert gone == ["a", "b"]
    assert budget.taken_bytes == 3


async def test_a_share_leaves_room_for_others() -> None:
    budget = ByteBudget(100)
    assert budget.try_take(75, share=0.75)
    assert not budget.try_take(1, share=0.75)
    assert budget.try_take(25)


@pytest.mark.parametrize("granted_first", [False, True])
async def test_cancelling_takes_nothing(granted_first: bool) -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = asyncio.create_task(budget.take(6))
    behind = asyncio.create_task(budget.take(3))
    await asyncio.sleep(0)
    if granted_first:
        budget.give(10)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    if not granted_first:
        budget.give(10)
    await behind
    assert budget.taken_bytes == 3


@given(steps=st.lists(st.tuples(st.sampled_from("tgck"), st.integers(1, 10)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_never_over_the_limit(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        budget = ByteBudget(10)
        waiting: list[tuple[asyncio.Task[None], int]] = []
        held: list[int] = []
        for name, size in steps:
            if name == "t":
                waiting.append((asyncio.create_task(budget.take(size)), size))
            elif name == "g" and held:
                budget.give(held.pop())
            elif name == "c" and waiting:
                waiting.pop(size % len(waiting))[0].cancel()
            elif name == "k" and held:
                budget.keep(object(), held.pop(), lambda: None)
            for _ in range(3):
                await asyncio.sleep(0)
            held += [size for task, size in waiting if task.done()]
            waiting = [(task, size) for task, size in waiting if not task.done()]
            assert budget.taken_bytes <= 10
            assert budget.taken_bytes >= sum(held)
        while held:
            budget.give(held.pop())
            for _ in range(3):
                await asyncio.sleep(0)
            held += [size for task, size in waiting if task.done()]
            waiting = [(task, size) for task, size in waiting if not task.done()]
        assert not waiting, "somebody waits although there is room"

    asyncio.run(run())


async def test_what_was_taken_for_a_block_of_code_is_given_back_when_it_is_cancelled() -> None:
    budget = ByteBudget(10)

    async def hold() -> None:
        async with budget.taken(7):
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    assert budget.taken_bytes == 7
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert budget.taken_bytes == 0
