"""`make demo`: a real bucket, prefetched, mounted, and trained on; nothing is left behind.

Starts SeaweedFS on free ports, puts 5,000 pictures into a bucket, and then types what a user would type. Every
command is shown before it runs.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from forebay.demo.images import digits
from forebay.tests.support.servers import S3Server, s3_server

BUCKET = "pictures"
console = Console(highlight=False)


def say(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def fill(server: S3Server) -> int:
    """Put the pictures into the bucket; returns their bytes."""
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    pictures = list(digits())
    with ThreadPoolExecutor(8) as threads:
        uploads = threads.map(lambda item: client.put_object(Bucket=BUCKET, Key=item[0], Body=item[1]), pictures)
        for _ in track(uploads, total=len(pictures), description="uploading", console=console):
            pass
    return sum(len(data) for _, data in pictures)


def compare(server: S3Server, checkpoint: Path) -> None:
    """The object in the bucket is the file in the folder."""
    key = f"{checkpoint.parent.name}/{checkpoint.name}"
    stored = server.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    if stored != checkpoint.read_bytes():
        raise SystemExit(f"s3://{BUCKET}/{key} is not what was written")
    console.print(f"s3://{BUCKET}/{key}: {len(stored) / 1e3:.0f} kB, the same as in the folder")


def take_down(mountpoint: Path) -> None:
    """Whatever happened: no mount and no process stays."""
    if os.path.ismount(mountpoint):
        subprocess.run([sys.executable, "-m", "forebay.cli", "umount", "--force", str(mountpoint)], check=False)


class Shell:
    """Runs `forebay` and friends with the environment of a user who points at the demo's server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment}

    def __call__(self, *command: str) -> None:
        console.print(f"[cyan]$ {shlex.join(command)}[/cyan]")
        subprocess.run(self.resolve(command), env=self.environment, check=True)

    def json(self, *command: str) -> Any:
        done = subprocess.run(self.resolve(command), env=self.environment, check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    def resolve(self, command: tuple[str, ...]) -> list[str]:
        """The installed `forebay` and `python` are those of this interpreter, whatever PATH says."""
        programs = {"forebay": [sys.executable, "-m", "forebay.cli"], "python": [sys.executable]}
        return [*programs.get(command[0], [command[0]]), *command[1:]]


def main() -> None:
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="forebay-demo-"))
    mountpoint = folder / "pictures"
    mountpoint.mkdir()
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        say("1. An object store: SeaweedFS, on this machine")
        server = undo.enter_context(s3_server(folder / "seaweedfs"))
        homes = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data")}
        shell = Shell({**server.environment, **homes})
        size = fill(server)
        console.print(f"5,000 pictures, {size / 1e6:.1f} MB, in s3://{BUCKET}")

        say("2. Warm the cache before the job")
        shell("forebay", "prefetch", f"s3://{BUCKET}")

        say("3. Mount the bucket: a plain folder")
        shell("forebay", "mount", f"s3://{BUCKET}", str(mountpoint))
        undo.callback(take_down, mountpoint)
        shell("ls", str(mountpoint), str(mountpoint / "train"))

        say("4. Train on it, with worker processes, and save a checkpoint after each epoch")
        checkpoint = mountpoint / "runs" / "model.pt"
        shell("python", "-m", "forebay.demo.train", str(mountpoint), str(checkpoint))
        shell("forebay", "flush", str(mountpoint))
        compare(server, checkpoint)

        say("5. What the cache did")
        shell("forebay", "status", str(mountpoint))
        say("6. Unmount, and give the space back")
        shell("forebay", "umount", str(mountpoint))
        shell("forebay", "free", f"s3://{BUCKET}")
    console.print(f"\nDone in {time.monotonic() - begin:.0f} s. Nothing is left behind.")


if __name__ == "__main__":
    main()
