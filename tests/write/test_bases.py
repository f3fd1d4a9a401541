"""What a file is based on changes under it: objects of the same etag again, and names that wait for each other in a ring."""

import asyncio

from forebay.cache.write.operations import Attributes
from forebay.tests.support.write_lab import FOLDER, Lab

SIZE = 100_000


async def settled(lab: Lab) -> None:
    async with asyncio.timeout(60):
        await lab.side.flush(timeout_s=30)
    assert lab.side.uploads.counts.conflicts == 0
    assert await lab.tree() == lab.bucket_tree()


async def test_an_open_file_goes_on_after_an_upload_that_changed_only_attributes(lab: Lab) -> None:
    """The object is replaced by one of the same etag."""
    lab.write(b"f", b"a" * SIZE)
    await settled(lab)
    file = lab.side.open(b"f", writable=True)
    for mode in (0o600, 0o640):
        lab.side.set_attributes(b"f", mode=mode)
        await settled(lab)
    file.write(0, b"b")
    file.sync()
    await settled(lab)
    assert bytes(await lab.side.fetch(file, 0, SIZE)) == b"b" + b"a" * (SIZE - 1)
    file.release()
    await settled(lab)


async def test_an_open_file_that_is_written_back_to_what_it_held(lab: Lab) -> None:
    """The second upload brings the etag of the first version back."""
    lab.write(b"f", b"a" * SIZE)
    await settled(lab)
    file = lab.side.open(b"f", writable=True)
    for byte in (b"b", b"a", b"b", b"a"):
        file.write(0, byte)
        file.sync()
        await settled(lab)
        assert bytes(await lab.side.fetch(file, 0, SIZE)) == byte + b"a" * (SIZE - 1)
    file.release()
    await settled(lab)


async def test_a_file_and_a_folder_that_changed_places(lab: Lab) -> None:
    """The file waits until the folder's objects have left, and those until the file's object has."""
    lab.side.mkdir(b"x", Attributes(0o755, 0, 0))
    lab.side.mkdir(b"t", Attributes(0o755, 0, 0))
    lab.write(b"x/below", b"below")
    lab.write(b"f", b"file")
    await settled(lab)
    lab.rename(b"x/below", b"t/below")
    lab.side.rmdir(b"x")
    lab.rename(b"f", b"x")
    lab.side.mkdir(b"f", Attributes(0o755, 0, 0))
    lab.rename(b"t/below", b"f/below")
    await settled(lab)
    assert await lab.tree() == {b"f": FOLDER, b"f/below": b"below", b"t": FOLDER, b"x": b"file"}
