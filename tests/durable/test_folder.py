"""What is special about a folder as write tier: its lock, its format, full and broken disks, kill -9."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.errors import TierFailed, TierFull, TierInUse
from forebay.tests.support.servers import unavailable
from forebay.tiers.durable import FolderTier


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    tier = FolderTier.at(tmp_path)
    with pytest.raises(TierInUse, match=f"process {os.getpid()} on"):
        FolderTier.at(tmp_path)
    tier.close()
    FolderTier.at(tmp_path).close()


def test_a_shared_folder_takes_several(tmp_path: Path) -> None:
    first, second = FolderTier.at(tmp_path, shared=True), FolderTier.at(tmp_path, shared=True)
    first.create("a-1").close()
    assert list(second.names()) == ["a-1"]
    first.close()
    second.close()


def test_another_format_is_refused(tmp_path: Path) -> None:
    FolderTier.at(tmp_path).close()
    (tmp_path / "format").write_text("forebay-write 99\n")
    with pytest.raises(TierFailed, match="forebay-write 99"):
        FolderTier.at(tmp_path)


def test_data_without_a_format_file_is_not_guessed_at(tmp_path: Path) -> None:
    tier = FolderTier.at(tmp_path)
    tier.create("a-1").close()
    tier.close()
    (tmp_path / "format").unlink()
    with pytest.raises(TierFailed, match="no format file"):
        FolderTier.at(tmp_path)


def test_the_share_that_stays_free_is_refused_before_the_disk_is_full(tmp_path: Path) -> None:
    tier = FolderTier.at(tmp_path, free_space_ratio=1.0)
    file = tier.create("a-1")
    with pytest.raises(TierFull, match="stays free"):
        file.write(0, b"x")
    file.close()
    tier.close()


def test_an_unusable_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TierFailed, match="as write tier"):
        FolderTier.at(tmp_path / "file" / "sub")


def test_a_full_disk_is_told_from_a_broken_one_and_loses_nothing_synced(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        unavailable("needs root to mount a small tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], check=True)
    try:
        tier = FolderTier.at(tmp_path, free_space_ratio=0.0)
        file = tier.create("a-1")
        file.write(0, b"k" * 1_000_000)
        file.sync()
        with pytest.raises(TierFull, match="full"):
            file.write(1_000_000, b"x" * 20_000_000)
        assert bytes(file.read(0, 1_000_000)) == b"k" * 1_000_000
        file.truncate(1_000_000)
        file.write(1_000_000, b"again")
        file.sync()
        file.close()
        tier.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_failed_sync_never_succeeds_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = FolderTier.at(tmp_path)
    file = tier.create("a-1")
    file.write(0, b"x")

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(TierFailed, match="sync a-1"):
            file.sync()
    with pytest.raises(TierFailed, match="sync a-1"):
        file.sync()
    file.close()
    tier.close()


WRITER = """
import sys
from pathlib import Path
from forebay.tiers.durable import FolderTier
tier = FolderTier.at(Path(sys.argv[1]), free_space_ratio=0.0)
for number in range(1_000_000):
    file = tier.create(f"k-{number}")
    file.write(0, number.to_bytes(8, "big") * 4096)
    file.sync()
    file.close()
    print(number, flush=True)
"""


def test_what_was_synced_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    acked = -1
    while acked < 30:
        acked = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    for line in process.stdout:
        acked = int(line)
    process.wait()
    process.stdout.close()
    tier = FolderTier.at(tmp_path)
    assert acked >= 30
    for number in range(acked + 1):
        file = tier.open(f"k-{number}")
        assert bytes(file.read(0, 32768)) == number.to_bytes(8, "big") * 4096
        file.close()
    tier.close()
