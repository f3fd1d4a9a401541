"""Long work inside a Forebay process (a prefetch), with somebody to own it and others to watch it.

A job belongs to the process, not to the connection that asked for it: it can be watched by nobody or by several, and
is cancelled by `cancel` or when the process ends. How many run at once is bounded, and of those that ended the last few
are remembered so that one who comes late still gets the receipt.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..client.control import error_document
from ..errors import ForebayError, UsageError

log = logging.getLogger(__name__)

MAX_RUNNING = 16
MAX_REMEMBERED = 32
WATCH_INTERVAL_S = 0.2
SIGN_OF_LIFE_S = 5.0

State = Literal["running", "done", "failed", "cancelled"]


@dataclass
class Job:
    """One piece of work. `progress` is the latest word of the worker, `outcome` what it returned; both JSON-able."""

    id: str
    kind: str
    what: str
    started_s: float = field(default_factory=time.time)
    state: State = "running"
    progress: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def update(self, progress: dict[str, Any]) -> None:
        """The worker's word of how far it is; cheap, and only the latest counts."""
        self.progress = progress
        self.wake()

    def wake(self) -> None:
        """Let every watcher look again. Each waits for the event that was there when it looked, so none misses a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "what": self.what,
            "started_s": self.started_s,
            "state": self.state,
            "progress": self.progress,
            "outcome": self.outcome,
            "error": self.error,
        }


class Jobs:
    """All jobs of one process; `async with` ends them all at the end."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    async def __aenter__(self) -> "Jobs":
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def running(self) -> int:
        return sum(job.state == "running" for job in self._jobs.values())

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def get(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise UsageError(f"there is no job {job_id!r}", remedy="`forebay status` lists them")
        return self._jobs[job_id]

    def start(self, kind: str, what: str, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> Job:
        """Begin; raises UsageError when too many run already."""
        if self.running >= MAX_RUNNING:
            raise UsageError(f"{MAX_RUNNING} jobs run already", remedy="wait for one to end, or cancel one")
        ended = [job for job in self._jobs.values() if job.state != "running"]
        for job in ended[: len(ended) - MAX_REMEMBERED + 1]:
            del self._jobs[job.id]
        job = Job(secrets.token_hex(4), kind, what)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, work), name=f"job {job.id}")
        job.task.add_done_callback(lambda _: self._ended(job))
        return job

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> None:
        try:
            job.outcome = await work(job)
            job.state = "done"
        except ForebayError as error:
            job.error, job.state = error_document(error), "failed"
            log.warning("%s of %s failed: %s", job.kind, job.what, error)
        except Exception as error:
            log.exception("%s of %s failed", job.kind, job.what)
            job.error = error_document(ForebayError(f"{job.kind} failed: {error!r}", remedy="see the log"))
            job.state = "failed"

    def _ended(self, job: Job) -> None:
        # A task that is cancelled before its first step never enters `_run`, so this is the one place that sees it.
        if job.state == "running":
            job.state = "cancelled"
        job.wake()

    async def cancel(self, job: Job) -> None:
        """Stop a job, and return when it has stopped."""
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])
            self._ended(job)

    async def watch(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """The job's description now, at most five times a second while it changes, at least every five seconds, and at its end."""
        while True:
            changed, ended = job.changed, job.state != "running"
            yield job.describe()
            if ended:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SIGN_OF_LIFE_S):
                    await changed.wait()
            if job.state == "running":
                await asyncio.sleep(WATCH_INTERVAL_S)
