"""Versions through the real command line: the process behind a mount, and what talks to it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from forebay.errors import RefNotFound, TierInUse, UsageError
from forebay.tests.support.fuse import clear

from .conftest import Lab

TIMEOUT_S = 300
V1 = {f"{kind}/{n:03}.jpg": b"%s %d" % (kind.encode(), n) * 50 for kind in ("cat", "dog") for n in range(8)}
V2 = {path: data for path, data in V1.items() if path.startswith("cat")} | {"new.jpg": b"new"}


class Forebay:
    """`forebay` in processes of its own, with a home of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.mountpoint = lab.folder / "mnt"
        self.mountpoint.mkdir()
        self.environment = {
            **os.environ,
            **lab.server.environment,
            "HOME": str(lab.folder),
            "XDG_RUNTIME_DIR": str(lab.folder / "run"),
            "AWS_ENDPOINT_URL_S3": lab.proxy.url,
            "FOREBAY_META_URL": f"sqlite:///{lab.folder}/meta.db",
            "FOREBAY_CACHE_DIR": str(lab.folder / "cache"),
            "FOREBAY_RAM_SIZE": "0",
            "FOREBAY_CACHE_SIZE": "256MiB",
            "FOREBAY_FREE_SPACE_RATIO": "0",
        }

    def __call__(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "forebay.cli", *map(str, arguments)],
            env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, done
        return done

    def json(self, *arguments: object, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)


@pytest.fixture
def forebay(lab: Lab) -> Iterator[Forebay]:
    (lab.folder / "run").mkdir(mode=0o700)
    made = Forebay(lab)
    try:
        yield made
    finally:
        for entry in made.json("status")["mounts"]:
            # Dead and hanging mounts of the whole machine are listed too, with no process: other tests have some.
            if entry["pid"] is not None:
                os.kill(entry["pid"], signal.SIGTERM)
        clear(made.mountpoint)


def test_two_versions_through_one_mount(forebay: Forebay, lab: Lab) -> None:
    lab.put(V1 | V2)
    lab.import_version(V1)
    lab.import_version(V2)
    forebay("mount", "pets@v1", forebay.mountpoint)
    assert (forebay.mountpoint / "dog/001.jpg").read_bytes() == V1["dog/001.jpg"]
    assert not (forebay.mountpoint / "new.jpg").exists()
    with pytest.raises(OSError, match="Read-only"):
        (forebay.mountpoint / "x").touch()
    info = forebay.json("info", forebay.mountpoint / "dog/001.jpg")
    assert (info["attributes"]["user.forebay.dataset"], info["attributes"]["user.forebay.ref"]) == ("pets", "v1")

    lab.proxy.forget()
    receipt = forebay.json("prefetch", "pets@v2")
    assert (receipt["complete"], receipt["asked_objects"], receipt["source"]) == (True, len(V2), "pets@v2")
    assert lab.proxy.count("GET", key="in/dog/002.jpg") == 0
    assert forebay.json("info", "pets@v2")["files"] == len(V2)
    assert forebay.json("info", "pets@v1")["files"] == len(V1)

    code = "import fsspec, json; fs = fsspec.filesystem('forebay'); print(json.dumps([len(fs.find('pets@v1')), len(fs.find('pets@v2')),"
    code += " fs.cat_file('pets@v2/new.jpg').decode(), fs.exists('pets@v2/dog'), fs.exists('pets@v1/dog')]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=forebay.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert json.loads(done.stdout) == [len(V1), len(V2), "new", False, True]

    other = lab.folder / "other"
    other.mkdir()
    assert "the mount of pets@v1" in forebay("mount", "pets@v2", other, code=TierInUse.exit_code).stderr
    lab.repository.delete_dataset("pets")
    held = forebay.json("snapshot", "gc", "--grace", "0s")["held"]
    assert {one["what"] for one in held} >= {f"the mount at {forebay.mountpoint}"}
    forebay("umount", forebay.mountpoint)
    assert forebay.json("snapshot", "gc", "--grace", "0s")["held"] == []


def test_a_version_is_prefetched_before_it_is_mounted(forebay: Forebay, lab: Lab) -> None:
    lab.put(V1)
    first, *others = V1
    lab.import_version(V1, labels={first: {"class": "cat"}})
    assert forebay.json("prefetch", "pets@v1")["complete"]
    lab.proxy.forget()
    forebay("mount", "pets@v1", forebay.mountpoint, "--by-label")
    assert {path.name for path in forebay.mountpoint.iterdir()} == {"cat", "_unlabeled"}
    assert len(list((forebay.mountpoint / "_unlabeled").iterdir())) == len(others)
    seen = [path.read_bytes() for path in forebay.mountpoint.glob("*/*")]
    assert sorted(seen) == sorted(V1.values())
    assert lab.proxy.count("GET") == 0
    forebay("umount", forebay.mountpoint)


def test_what_cannot_be_mounted_says_why(forebay: Forebay, lab: Lab) -> None:
    lab.import_version({"a": b"1"})
    assert "newest version is v1" in forebay("mount", "pets@v2", forebay.mountpoint, code=RefNotFound.exit_code).stderr
    assert "write pets@latest" in forebay("mount", "pets", forebay.mountpoint, code=UsageError.exit_code).stderr
    assert "no dataset 'pats'; did you mean pets" in forebay("mount", "pats@v1", forebay.mountpoint, code=51).stderr
    refused = forebay(
        "mount", f"s3://{lab.bucket}", forebay.mountpoint, "--by-label", "class", code=UsageError.exit_code
    )
    assert "leave out --by-label" in refused.stderr
    # Without a value it is the label `class`, which nothing here has.
    refused = forebay("mount", "pets@v1", forebay.mountpoint, "--by-label", code=UsageError.exit_code)
    assert "no file of pets@v1 has the label 'class'" in refused.stderr
    assert not forebay.mountpoint.is_mount()
