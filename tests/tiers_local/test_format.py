"""The format on disk: folders written by earlier versions are read, and today's version writes the same bytes."""

import shutil
import tarfile
from pathlib import Path

import pytest

from forebay.tests.tiers_local.content import content_of
from forebay.tiers.local import FifoPolicy, LocalTier, TierOptions, identity
from forebay.tiers.local.folder import FORMAT_VERSION
from forebay.tiers.version import CHUNK_BYTES, ObjectVersion

SAMPLES = Path(__file__).parents[1] / "data"
CAPACITY_BYTES = 64 * 1024 * 1024
SMALL = [
    ObjectVersion("s3://bucket", "plain.txt", "d41d8cd98f00b204", 11),
    ObjectVersion("s3://bucket@http://127.0.0.1:9000", "dir/ünïcode \udcff key", "etag-2", 40_000, "v-1"),
    ObjectVersion("file:///data", "x" * 900, "17-33-5", 700, ""),
]
LARGE = ObjectVersion("s3://bucket", "model.bin", "abc-7", 5 * 1024 * 1024 + 123)
# Of the large object: a chunk of the first block, and the short one at its end.
PARTS = [(2 * CHUNK_BYTES, CHUNK_BYTES), (160 * CHUNK_BYTES, 123)]


def write_sample(folder: Path) -> None:
    """Fill a cache folder the way the stored samples were."""
    tier = open_tier(folder)
    for version in SMALL:
        tier.write(version, 0, content_of(version))
    for offset, size in PARTS:
        tier.write(LARGE, offset, content_of(LARGE)[offset : offset + size])
    tier.close()


def open_tier(folder: Path) -> LocalTier:
    return LocalTier.open(TierOptions("ssd", folder, CAPACITY_BYTES, free_space_ratio=0.0), FifoPolicy())


def stored_versions() -> list[int]:
    return sorted(
        int(path.name.removesuffix(".tar.xz").removeprefix("tier-format-")) for path in SAMPLES.glob("tier-*")
    )


def unpack(version: int, folder: Path) -> Path:
    with tarfile.open(SAMPLES / f"tier-format-{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "tier"


def test_there_is_a_sample_of_the_present_format() -> None:
    assert FORMAT_VERSION in stored_versions()


@pytest.mark.parametrize("table", ["kept", "lost"])
@pytest.mark.parametrize("version", stored_versions())
def test_a_stored_folder_is_read(tmp_path: Path, version: int, table: str) -> None:
    folder = unpack(version, tmp_path)
    if table == "lost":
        (folder / "blocks").unlink()
    tier = open_tier(folder)
    for small in SMALL:
        assert tier.read(small, 0, small.size) == content_of(small)
    for offset, size in PARTS:
        assert tier.read(LARGE, offset, size) == content_of(LARGE)[offset : offset + size]
    assert tier.cached_bytes(LARGE) == CHUNK_BYTES + 123
    assert tier.stats().corrupt == 0
    tier.validate()
    tier.close()


@pytest.mark.parametrize("version", stored_versions())
def test_a_stored_folder_goes_on_as_the_present_format(tmp_path: Path, version: int) -> None:
    folder = unpack(version, tmp_path)
    tier = open_tier(folder)
    tier.write(LARGE, 0, content_of(LARGE)[: 4 * CHUNK_BYTES])
    tier.close()
    assert f'"version": {FORMAT_VERSION}' in (folder / "format").read_text()
    tier = open_tier(folder)
    assert tier.read(LARGE, CHUNK_BYTES + 5000, 4096) == content_of(LARGE)[CHUNK_BYTES + 5000 :][:4096]
    assert tier.cached_bytes(LARGE) == 4 * CHUNK_BYTES + 123
    map_file = next(folder.rglob("*.map"))
    with map_file.open("r+b") as file:
        file.seek(4096)
        file.write(b"x")
    assert tier.read(LARGE, 0, CHUNK_BYTES) is None
    assert tier.missing(LARGE, 0, LARGE.size)[0] == (0, CHUNK_BYTES)
    tier.validate()
    assert tier.drop(LARGE) == 3 * CHUNK_BYTES + 123
    assert not list(folder.rglob("*.map"))
    tier.validate()
    tier.close()


def test_the_format_does_not_change_by_accident(tmp_path: Path) -> None:
    stored = unpack(FORMAT_VERSION, tmp_path)
    write_sample(tmp_path / "new")
    names = sorted(str(p.relative_to(stored)) for p in stored.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*") if p.is_file())
    for name in names:
        old, new = (stored / name).read_bytes(), (tmp_path / "new" / name).read_bytes()
        if name == "blocks":
            old, new = old[4096:], new[4096:]  # its header names the machine's boot
        assert name == "lock" or old == new, f"{name} changed: give the format a new number, and keep a sample of it"


@pytest.mark.parametrize("version", [*SMALL, LARGE])
def test_identities_come_back(version: ObjectVersion) -> None:
    encoded = identity.encode(version)
    assert identity.decode(encoded, version.digest) == version
    assert identity.decode(encoded, bytes(16)) is None
    for cut in range(0, len(encoded), 7):
        assert identity.decode(encoded[:cut], version.digest) is None
    for at in range(0, len(encoded), 5):
        damaged = bytearray(encoded)
        damaged[at] ^= 1
        assert identity.decode(damaged, version.digest) is None


def make_sample() -> None:
    """Write the sample of the present format: `python -c "from forebay.tests.tiers_local.test_format import ..."`."""
    folder = SAMPLES / "tier"
    write_sample(folder)
    with tarfile.open(SAMPLES / f"tier-format-{FORMAT_VERSION}.tar.xz", "w:xz") as archive:
        archive.add(folder, "tier")
    shutil.rmtree(folder)
