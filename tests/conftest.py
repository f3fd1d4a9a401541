"""What every area shares: real servers, once per session and worker, and a run that leaves nothing behind."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.support import leftovers
from forebay.tests.support.servers import MongoServer, S3Server, mongo_server, s3_server

_temporary = pytest.StashKey[Path]()
_left = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell: what tests start would inherit that Ctrl-C means nothing.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
        config.stash[_temporary] = factory.getbasetemp()
        leftovers.begin(config.stash[_temporary])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _temporary in session.config.stash:
        session.config.stash[_left] = leftovers.end(session.config.stash[_temporary])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(_left, []):
        terminalreporter.section("processes that tests left running (ended now)")
        for command in left:
            terminalreporter.line(command)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (SeaweedFS); make a bucket of your own with `s3.new_bucket()`."""
    with s3_server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """A real mongod (one-member replica set); use a database name of your own."""
    with mongo_server(tmp_path_factory.mktemp("mongod")) as server:
        yield server
