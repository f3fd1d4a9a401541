"""Commands asked for what makes no sense, or where nothing is: the message, the exit code, and no trace of Python."""

import json
from pathlib import Path

import pytest

from forebay.tests.support.command_line import CommandLine


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["prefetch", "file:///tmp", "--lease", "soon"], 2, "'soon' is not a duration"),
        (["prefetch", "file:///tmp", "-f", "/no/such/list"], 2, "/no/such/list cannot be read"),
        (["prefetch", "file:///tmp", "file:///etc", "-f", "-"], 2, "-f belongs to one source"),
        (["prefetch", "file:///tmp", "-f", "-"], 2, "is empty"),
        (["prefetch", "file:///tmp", "--check", "--dry-run"], 2, "not allowed with"),
        (["prefetch", "/etc"], 31, "/etc is not inside a Forebay mount"),
        (["prefetch", "file:///no/such/folder"], 13, "no such folder"),
        (["unpin", "file:///tmp"], 2, "neither a lease nor an owner"),
        (["unpin", "file:///tmp", "abc"], 2, "there is no lease abc"),
        (["info", "/etc/passwd"], 31, "is not inside a Forebay mount"),
        (["info", "file:///tmp"], 31, "no Forebay process holds file:///tmp"),
        (["status", "/etc"], 31, "is not inside a Forebay mount"),
        (["umount", "/etc"], 31, "is not a mountpoint of Forebay"),
        (["mount", "file:///tmp"], 2, "MOUNTPOINT"),
        (["mount", "--metrics-address", "0.0.0.0", "file:///tmp", "/mnt"], 2, "no effect without metrics-port"),
        (["free", "nonsense://x"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(forebay: CommandLine, arguments: list[str], code: int, says: str) -> None:
    done = forebay(*arguments)
    assert says in done.stderr, done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_nothing_anywhere(forebay: CommandLine, tmp_path: Path) -> None:
    assert forebay.json("status")["holders"] == []
    assert forebay.ok("pins", "file:///tmp") == "nothing of file:///tmp is pinned\n"
    assert json.loads(forebay.ok("free", "file:///tmp", "--json"))["freed_bytes"] == 0
    assert not (tmp_path / "cache" / "forebay").exists()
