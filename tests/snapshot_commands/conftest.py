"""The real command line on a real bucket, with the datasets in SQLite and in MongoDB."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forebay import cli
from forebay.tests.support.servers import S3Server


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its only JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Forebay = Callable[..., Done]


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server, which every AWS client of this process now talks to."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    return s3


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of whoever runs the tests; work in a folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "mongo"])
def meta_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty metadata store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/meta.db"
    server = request.getfixturevalue("mongo")
    base, _, query = server.url.partition("/?")
    return f"{base}/test_{tmp_path.name[:40].replace('-', '_')}_{tmp_path.parent.name[-6:].replace('-', '_')}?{query}"


def runner(capfd: pytest.CaptureFixture[str]) -> Forebay:
    """Runs `forebay` in this process."""

    def run(*arguments: object, code: int = 0) -> Done:
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["forebay", *map(str, arguments)])
            try:
                ended = cli.main(sys.argv[1:])
            except SystemExit as error:
                ended = int(error.code or 0)
        out, err = capfd.readouterr()
        done = Done(ended, out, err)
        assert done.code == code, done
        return done

    return run


@pytest.fixture
def forebay(
    clean_environment: None, meta_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Forebay:
    """Runs `forebay` on an empty metadata store of each kind; asserts the exit code."""
    monkeypatch.setenv("FOREBAY_META_URL", meta_url)
    return runner(capfd)


@pytest.fixture
def forebay_sqlite(
    clean_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Forebay:
    """Runs `forebay` on an empty SQLite store; for what does not depend on the store."""
    monkeypatch.setenv("FOREBAY_META_URL", f"sqlite:///{tmp_path}/meta.db")
    return runner(capfd)
