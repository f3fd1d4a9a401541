"""Log lines: one per message whatever is in it, no secrets, bounded files."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.daemon import logs
from forebay.errors import ConfigError

SECRET = "wJalrXUtnFEMI-secret"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test installs is taken away again."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    root = logging.getLogger()
    handlers, level, ours = list(root.handlers), root.level, logging.getLogger("forebay").level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("forebay").setLevel(ours)
    logging.captureWarnings(False)


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines(tmp_path: Path, form: str) -> None:
    path = tmp_path / "sub" / "log"
    logs.to_file(path, level="info", form=form)
    log = logging.getLogger("forebay.tiers.local")
    log.info("key %r of %s", "a\nb", "line\nbreak")
    log.warning("it is %s", SECRET)
    log.debug("not shown")
    logging.getLogger("botocore").info("not ours")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert SECRET not in path.read_text()
    if form == "json":
        first = json.loads(lines[0])
        assert (first["level"], first["area"]) == ("info", "tiers.local")
        assert first["message"] == "key 'a\\nb' of line\nbreak"
    else:
        assert "INFO    tiers.local: key 'a\\nb' of line\\nbreak" in lines[0]
        assert "WARNING tiers.local: it is ***" in lines[1]


def test_traces_are_kept(tmp_path: Path) -> None:
    logs.to_file(tmp_path / "log", level="info", form="json")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("forebay.x").exception("failed")
    assert "ValueError: why" in json.loads((tmp_path / "log").read_text())["trace"]


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_FILE_BYTES", 10_000)
    logs.to_file(tmp_path / "log", level="info", form="text")
    for number in range(2000):
        logging.getLogger("forebay.x").info("message %d with some length to it", number)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + logs.KEPT_FILES
    assert all(file.stat().st_size <= 10_000 for file in files)


def test_file_that_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        logs.to_file(Path("/proc/none/log"), level="info", form="text")


def test_journald_gets_priorities(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    logs.to_stderr(level="info", form="text")
    logging.getLogger("forebay.x").error("bad")
    assert capsys.readouterr().err.startswith("<3>")
