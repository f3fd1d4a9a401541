"""The control socket end to end: our blocking client against our server, errors and streams included."""

import asyncio
import multiprocessing
import pickle
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from forebay.client.control import Control
from forebay.daemon.control import ControlServer, body_of, query_of, stream_lines
from forebay.daemon.jobs import MAX_REMEMBERED, MAX_RUNNING, Job, Jobs
from forebay.errors import DaemonUnreachable, ForebayError, ObjectChanged, UsageError
from forebay.tests.support.control_worker import ask_in_child


async def echo(request: web.Request) -> web.Response:
    return web.json_response({"query": query_of(request), "body": await body_of(request)})


async def content(request: web.Request) -> web.Response:
    return web.Response(body=b"\0\xff" * 1000)


async def changed(request: web.Request) -> web.Response:
    raise ObjectChanged("a/b was overwritten", remedy="open it again")


async def broken(request: web.Request) -> web.Response:
    raise RuntimeError("secret detail")


async def count(request: web.Request) -> web.StreamResponse:
    async def lines() -> AsyncIterator[dict[str, Any]]:
        for n in range(3):
            yield {"n": n}

    return await stream_lines(request, lines())


def new_server(path: Path, jobs: Jobs) -> ControlServer:
    server = ControlServer(path)

    async def watch(request: web.Request) -> web.StreamResponse:
        job = jobs.start("prefetch", "x", lambda job: counting(job, asyncio.Queue()))
        return await stream_lines(request, jobs.watch(job), hung_up=lambda: jobs.cancel(job))

    server.add("GET", "echo", echo)
    server.add("POST", "echo", echo)
    server.add("POST", "content", content)
    server.add("GET", "changed", changed)
    server.add("GET", "broken", broken)
    server.add("POST", "count", count)
    server.add("POST", "watch", watch)
    return server


@pytest.fixture
async def jobs() -> AsyncIterator[Jobs]:
    async with Jobs() as jobs:
        yield jobs


@pytest.fixture
async def server(tmp_path: Path, jobs: Jobs) -> AsyncIterator[ControlServer]:
    path = tmp_path / ("long" * 40) / "c.sock"
    path.parent.mkdir()
    server = new_server(path, jobs)
    await server.start()
    yield server
    await server.close()
    assert not path.exists()


async def test_calls(server: ControlServer) -> None:
    control = Control(server.path)
    answer = await asyncio.to_thread(control.get, "echo", path="a b/\udcffé&=")
    assert answer["query"] == {"path": "a b/\udcffé&="}
    assert (await asyncio.to_thread(control.post, "echo", {"x": [1]}))["body"] == {"x": [1]}
    assert await asyncio.to_thread(control.post_for_bytes, "content", {}) == b"\0\xff" * 1000
    assert server.path.stat().st_mode & 0o777 == 0o600
    control.close()


async def test_errors_arrive_as_what_they_were(server: ControlServer, caplog: pytest.LogCaptureFixture) -> None:
    control = Control(server.path)
    with pytest.raises(ObjectChanged, match="a/b was overwritten; open it again"):
        await asyncio.to_thread(control.get, "changed")
    with pytest.raises(UsageError, match="no call GET /v1/nonsense"):
        await asyncio.to_thread(control.get, "nonsense")
    with pytest.raises(ForebayError) as caught:
        await asyncio.to_thread(control.get, "broken")
    assert "secret detail" not in str(caught.value)
    assert "secret detail" in caplog.text
    control.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="No such file"):
        Control(tmp_path / "none.sock").get("status")


async def test_server_that_went_away_and_came_back(server: ControlServer, jobs: Jobs) -> None:
    control = Control(server.path)
    await asyncio.to_thread(control.get, "echo")
    await server.close()
    with pytest.raises(DaemonUnreachable):
        await asyncio.to_thread(control.get, "echo")
    again = new_server(server.path, jobs)
    await again.start()
    assert await asyncio.to_thread(control.get, "echo")
    control.close()
    await again.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_one_client_in_many_processes(server: ControlServer, method: str) -> None:
    """Forked workers must not share the parent's connection: their answers would be mixed up."""
    control = Control(server.path)
    await asyncio.to_thread(control.get, "echo")
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    children = [context.Process(target=ask_in_child, args=(control, answers)) for _ in range(4)]
    for child in children:
        child.start()
    expected = [str(n) for n in range(50)]
    mine = await asyncio.to_thread(lambda: [control.get("echo", n=n)["query"]["n"] for n in range(50)])
    theirs = [await asyncio.to_thread(answers.get, timeout=180) for _ in children]
    for child in children:
        await asyncio.to_thread(child.join, 60)
    assert mine == expected
    assert theirs == [expected] * 4
    control.close()


async def test_many_threads_share_a_client(server: ControlServer) -> None:
    control = pickle.loads(pickle.dumps(Control(server.path)))
    wrong: list[object] = []

    def ask(worker: int) -> None:
        for n in range(30):
            answer = control.get("echo", worker=worker, n=n)["query"]
            if answer != {"worker": str(worker), "n": str(n)}:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert not wrong
    control.close()


async def test_stream_to_its_end(server: ControlServer) -> None:
    assert await asyncio.to_thread(list, Control(server.path).stream("count")) == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_hanging_up_cancels(server: ControlServer, jobs: Jobs) -> None:
    stream = Control(server.path).stream("watch")
    assert (await asyncio.to_thread(next, stream))["state"] == "running"
    (job,) = jobs.all()
    await asyncio.to_thread(stream.close)  # type: ignore[attr-defined]
    assert job.task is not None
    await asyncio.wait([job.task], timeout=180)
    assert job.state == "cancelled"


async def counting(job: Job, steps: asyncio.Queue[int]) -> dict[str, Any]:
    while (step := await steps.get()) >= 0:
        job.update({"done": step})
    return {"complete": True}


async def test_job_is_watched_to_its_end(jobs: Jobs) -> None:
    steps: asyncio.Queue[int] = asyncio.Queue()
    job = jobs.start("prefetch", "s3://b", lambda job: counting(job, steps))
    seen = []
    async for state in jobs.watch(job):
        seen.append((state["state"], state["progress"].get("done")))
        if len(seen) < 4:
            steps.put_nowait(len(seen))
        elif len(seen) == 4:
            steps.put_nowait(-1)
    assert seen == [("running", None), ("running", 1), ("running", 2), ("running", 3), ("done", 3)]
    assert jobs.running == 0


async def test_failed_and_broken_jobs_say_why(jobs: Jobs) -> None:
    async def fails(job: Job) -> dict[str, Any]:
        raise ObjectChanged("gone")

    async def breaks(job: Job) -> dict[str, Any]:
        raise KeyError("x")

    for work, kind in ((fails, "object_changed"), (breaks, "internal")):
        job = jobs.start("prefetch", "s3://b", work)
        last = [state async for state in jobs.watch(job)][-1]
        assert last["state"] == "failed"
        assert last["error"]["kind"] == kind


async def test_jobs_are_bounded(jobs: Jobs) -> None:
    steps: asyncio.Queue[int] = asyncio.Queue()
    running = [jobs.start("p", str(n), lambda job: counting(job, steps)) for n in range(MAX_RUNNING)]
    with pytest.raises(UsageError, match="run already"):
        jobs.start("p", "one more", lambda job: counting(job, steps))
    for job in running:
        await jobs.cancel(job)
        assert job.state == "cancelled"
    for _ in range(3 * MAX_REMEMBERED):
        steps.put_nowait(-1)
        job = jobs.start("p", "x", lambda job: counting(job, steps))
        assert job.task is not None
        await job.task
    assert len(jobs.all()) <= MAX_REMEMBERED
