"""Progress: plain lines where nobody looks at a terminal, a bar where somebody does, nothing when asked for silence."""

import io

import pytest

from forebay.commands import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("forebay.commands.progress.time.monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with progress.show("prefetch s3://b", stream=out) as bar:
        for done in range(1, 5):
            bar.update(done=done * 10, total=100, done_bytes=done * 1024**2, total_bytes=10 * 1024**2)
        bar.say("a remark")
    lines = out.getvalue().splitlines()
    assert lines[0] == "prefetch s3://b: 20 of 100 objects, 2.00 MiB of 10.0 MiB, 256 KiB/s, 32 s left"
    assert "a remark" in lines
    assert lines[-1].startswith("prefetch s3://b: 40 of 100 objects, 4.00 MiB of 10.0 MiB")
    assert ", in " in lines[-1]
    assert len(lines) == 4


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show("x", quiet=True) as bar:
        bar.update(done=1)
    assert capsys.readouterr() == ("", "")


def test_bar() -> None:
    out = Terminal()
    with progress.show("prefetch [s3]://b", stream=out) as bar:
        bar.update(done=5, total=10, done_bytes=0, total_bytes=0)
        bar.update(done=10, total=10, done_bytes=1024**2, total_bytes=1024**2)
    assert "10/10 objects" in out.getvalue()


def test_errors_pass_through() -> None:
    for stream in (io.StringIO(), Terminal()):
        with pytest.raises(KeyError), progress.show("x", stream=stream):
            raise KeyError
