"""The frame of the command line: help, exit codes, JSON, and quiet ends."""

import ast
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forebay import cli, errors
from forebay.tests.project.test_structure import ROOT
from forebay.tests.support.command_line import CommandLine


def test_help_names_every_command(forebay: CommandLine) -> None:
    done = forebay("--help")
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert f"\n    {name} " in done.stdout


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_help_imports_nothing_heavy() -> None:
    """`forebay --help` must answer at once, so it must not import what takes long. (Time itself depends on the machine.)"""
    code = "import sys; from forebay import cli\ntry: cli.main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stderr.split())
    assert not modules & {"aiohttp", "numpy", "pyarrow", "boto3", "obstore", "rich", "fsspec", "pymongo", "asyncio"}


def test_version(forebay: CommandLine) -> None:
    assert forebay("--version").stdout.startswith("forebay ")


def test_unknown_command(forebay: CommandLine) -> None:
    done = forebay("mout")
    assert done.returncode == 2
    assert "mout" in done.stderr


def test_config_shows_values_and_origins(forebay: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('eviction = "lru"\n')
    done = forebay(
        "--config",
        str(file),
        "config",
        "--cache-size",
        "2G",
        "--json",
        environ={"FOREBAY_META_URL": "mongodb://u:pw@h/d"},
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["eviction"] | {"help": ""} == {
        "value": "lru", "origin": f"{file}: eviction", "default": "s3fifo", "variable": "FOREBAY_EVICTION", "help": "",
    }  # fmt: skip
    assert values["cache-size"]["value"] == "2GiB"
    assert values["meta-url"]["value"] == "mongodb://***@h/d"
    assert "pw" not in done.stdout


def test_failures_are_said_on_stderr_and_in_json(forebay: CommandLine) -> None:
    done = forebay("config", "no-such", "--json")
    assert done.returncode == 2
    assert done.stderr == "forebay: there is no setting 'no-such'; `forebay config` lists all\n"
    assert json.loads(done.stdout)["error"]["kind"] == "usage"


def test_wrong_variable_has_its_exit_code(forebay: CommandLine) -> None:
    done = forebay("config", environ={"FOREBAY_CASH_DIR": "/x"})
    assert done.returncode == 3
    assert "did you mean FOREBAY_CACHE_DIR?" in done.stderr


def test_reader_of_the_output_may_leave() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "forebay.cli", "config", "--explain"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 141
    assert stderr == b""


def test_interrupt_ends_with_130() -> None:
    code = "import sys, time; from forebay import cli\nfrom forebay.commands import config as c\ndef run(*a): print('in', flush=True); time.sleep(60)\nc.run = run\nsys.exit(cli.main(['config']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 130
    assert b"Traceback" not in stderr


def error_classes(base: type[errors.ForebayError] = errors.ForebayError) -> list[type[errors.ForebayError]]:
    return [base] + [found for sub in base.__subclasses__() for found in error_classes(sub)]


def test_exit_codes_are_documented_and_distinct() -> None:
    listed = {}
    for line in (ROOT / "docs/exit-codes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].isdigit() and cells[2]:
            listed[int(cells[1])] = cells[2].strip("`")
    assert listed == {found.exit_code: found.kind for found in error_classes()}
    assert len(listed) == len(error_classes())


def test_commands_have_no_other_exit_codes() -> None:
    """A literal exit code in a command would be one that the document does not know."""
    for path in (ROOT / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "run":
                returned = [
                    n.value for n in ast.walk(node) if isinstance(n, ast.Return) and isinstance(n.value, ast.Constant)
                ]
                assert {value.value for value in returned} <= {0, 1}, path


def test_commands_start_fast() -> None:
    def children_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    best_s = 9.0
    for _ in range(3):
        start = children_s()
        subprocess.run([sys.executable, "-m", "forebay.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        best_s = min(best_s, children_s() - start)
    # 0.15 s of a processor, whatever else runs; this bound only catches a heavy import that the list above does not know.
    assert best_s < 1.0
