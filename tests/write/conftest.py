"""What most tests of the write side start with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay.tests.support.multipart_bucket import MultipartBucket
from forebay.tests.support.write_lab import Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = await Lab.start(tmp_path / "tier", MultipartBucket())
    yield lab
    lab.side.state.validate()
    await lab.side.close()
