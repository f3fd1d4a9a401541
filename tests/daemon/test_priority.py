"""The process behind a mount goes before the programs that wait for it, unless somebody chose otherwise."""

import os
import subprocess
import sys

import pytest

from forebay.daemon import checkup, machine, priority

SHOW = "import os, sys; from forebay.daemon import priority; {}; print(os.getpriority(os.PRIO_PROCESS, 0))"


def after(action: str, start_nice: int) -> int:
    """The priority of a process that was started with one, and then did that."""
    command = [sys.executable, "-c", SHOW.format(action)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, start_nice),
    )  # fmt: skip
    return int(done.stdout)


@pytest.fixture
def permitted() -> None:
    if not machine.may_set_priority(priority.FIRST):
        pytest.skip("this process may not raise its priority")


@pytest.mark.usefixtures("permitted")
def test_it_goes_first_and_steps_back() -> None:
    assert after("priority.go_first()", 0) == priority.FIRST
    assert after("priority.go_first(); priority.step_back()", 0) == 0


@pytest.mark.usefixtures("permitted")
@pytest.mark.parametrize("chosen", [1, -3])
def test_a_priority_that_somebody_chose_stays(chosen: int) -> None:
    assert after("priority.go_first()", chosen) == chosen
    assert after("priority.step_back()", chosen) == chosen


def test_who_may_not_goes_on_at_the_usual_one() -> None:
    drop = "os.setresuid(65534, 65534, 65534); " if os.geteuid() == 0 else ""
    current = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = 0 if machine.may_set_priority(0) else current
    assert after(f"{drop}priority.go_first()", wanted) == wanted


def test_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "may_set_priority", lambda nice: False)
    finding = checkup.check_priority()
    assert finding.grade == "warn"
    assert "CAP_SYS_NICE" in finding.remedy
