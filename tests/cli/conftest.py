"""Running the command line as its users do: as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TIMEOUT_S = 120.0

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def forebay(tmp_path: Path) -> Run:
    """`forebay(*arguments, environ={...})` runs the command with a home folder of its own; output as text, never raises."""

    def run(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FOREBAY_", "AWS_", "XDG_"))}
        return subprocess.run(
            [sys.executable, "-m", "forebay.cli", *arguments],
            env={**clean, "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run
