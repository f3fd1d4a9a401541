"""The tour of the README runs, line by line, against a real S3 server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.project.test_structure import ROOT
from forebay.tests.support.command_line import CommandLine, command_line, need_fuse
from forebay.tests.support.servers import S3Server

TOUR_TIMEOUT_S = 500


@pytest.fixture
def forebay(tmp_path: Path, s3: S3Server) -> Iterator[CommandLine]:
    need_fuse()
    with command_line(tmp_path, s3.environment) as commands:
        yield commands


def shell_blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_tour(forebay: CommandLine, s3: S3Server) -> None:
    client = s3.client()
    client.create_bucket(Bucket="my-bucket")
    for number in range(50):
        client.put_object(Bucket="my-bucket", Key=f"images/{number % 5}/{number}.png", Body=os.urandom(20_000))
    blocks = shell_blocks((ROOT / "README.md").read_text())
    assert len(blocks) >= 5
    forebay.mountpoints += [forebay.folder / "home" / "images", forebay.folder / "home" / "images-v1"]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "set -x\n" + "\n".join(blocks)],
        env={**forebay.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=TOUR_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n50\n" in done.stdout
    assert "50 files" in done.stdout
    assert "images@v1" in done.stdout
    assert "complete: s3://my-bucket/images" in done.stdout
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="my-bucket", Prefix="images/runs/")["Contents"]]
    assert "images/runs/notes.txt" in keys
    assert not any(key.endswith(".tmp") for key in keys)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text()):
        assert "://" in link or (ROOT / link).exists(), link
