"""The threads behind a mount go before other programs."""

import os
from pathlib import Path

import pytest

from forebay.daemon import machine, priority
from forebay.fuse_mount.options import MountOptions
from forebay.tests.mount.conftest import Bucket
from forebay.tests.support.command_line import CommandLine


def test_its_threads_go_first(forebay: CommandLine, bucket: Bucket) -> None:
    if os.getpriority(os.PRIO_PROCESS, 0) != priority.NORMAL or not machine.may_set_priority(priority.FIRST):
        pytest.skip("this process has another priority, or may not raise it")
    where = forebay.mount(bucket.url)
    pid = forebay.status(where)["pid"]
    priorities = [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(Path(f"/proc/{pid}/task"))]
    assert os.getpriority(os.PRIO_PROCESS, pid) == priority.FIRST
    # Libraries may have started threads when they were imported (NumPy's OpenBLAS: one less than there are processors).
    assert priorities.count(priority.FIRST) > MountOptions().lane_threads
