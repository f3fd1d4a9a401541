"""Running the command line as its users do: as a process of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.support.command_line import CommandLine, command_line


@pytest.fixture
def forebay(tmp_path: Path) -> Iterator[CommandLine]:
    """`forebay(*arguments, environ={...})` runs a command with a home folder of its own."""
    with command_line(tmp_path) as commands:
        yield commands
