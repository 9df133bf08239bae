"""The command line as its users meet it: help, exit codes, one line of error, JSON that is only JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from nuclora.cli.main import app, run
from one_line import assert_one_line

HEAVY = ("torch", "transformers", "peft", "kornia", "sklearn", "skimage", "matplotlib", "scipy", "numpy", "pydantic")


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)


def _nuclora(*arguments: object, first: str = "") -> subprocess.CompletedProcess[str]:
    """The entry point in a process of its own, after some code."""
    return _python(f"{first}\nfrom nuclora.cli.main import run\nrun()", *arguments)


def _commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name, command in get_command(app).commands.items():
        found.append((name,))
        found += [(name, sub) for sub in getattr(command, "commands", {})]
    return found


def test_all_commands_of_the_design_are_there():
    names = {" ".join(command) for command in _commands()}
    assert names >= {
        "doctor", "demo", "weights list", "weights fetch", "data fetch", "data check", "data synth", "folds", "params",
        "train", "cv", "ablate", "tune", "evaluate", "report", "predict", "export",
    }  # fmt: skip


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_every_command_has_help(command):
    for option in ("--help", "-h"):
        result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*command, option])
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
        assert result.stderr == ""


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys\n"
        "from nuclora.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = _python(code)
    assert done.stderr == "[]\n"
    assert "doctor" in done.stdout


def test_importing_nuclora_costs_nothing_and_has_the_public_names():
    import nuclora

    done = _python(f"import sys, nuclora; print([n for n in {HEAVY!r} if n in sys.modules])")
    assert done.stdout == "[]\n"
    for name in nuclora.__all__:
        assert getattr(nuclora, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nuclora.nothing  # noqa: B018


def test_version():
    done = _nuclora("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nuclora {version('nuclora')}\n", "")


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "nuclora", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"nuclora {version('nuclora')}\n"


def test_no_command_shows_the_help():
    done = _nuclora()
    assert "Usage:" in done.stdout + done.stderr
    assert done.returncode in (0, 2)


def _is_one_line(error: str, told: str) -> bool:
    return error.startswith("nuclora: ") and told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("data", "check", "no/such/folder"), "no/such/folder: no such folder"),
        # The first of these to have loaded torch and transformers, which like to say things on standard error.
        (("train", ".", "-o", "x", "--set", "train.epoch=3"), "train.epoch: no such field"),
    ],
    ids=["data", "train"],
)
def test_bad_input_is_one_line_and_exit_2(arguments, told, tmp_path):
    done = _nuclora(*arguments, first=f"import os; os.chdir({str(tmp_path)!r})")
    assert (done.returncode, done.stdout) == (2, "")
    assert _is_one_line(done.stderr, told), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("cv . -o x --recipe papr", "papr: no such recipe; name a YAML file or one of"),
        ("cv no/such/folder -o x", "no/such/folder: no such folder"),
        ("cv {data} -o x --folds four", "--folds four: not numbers; write e.g. --folds 4,5"),
        ("cv {data} -o x --folds 9", "no fold 9: the fold table has 1, 2, 3, 4, 5"),
        ("cv {data} -o x -k 11", "11 folds of 10 tiles; choose 2 to 10 folds"),
        ("cv {data} -o x --fold-table no.csv", "no.csv: no such file"),
        ("cv {data} -o x --format dicom", "no data format named 'dicom'; use one of nuinsseg, folder"),
        ("cv {data} -o x --base custom", "the weights of custom are not on this machine; give --weights FOLDER"),
        ("cv {data} -o x --base mobile_sam --weights no.pt", "no.pt: no such weights"),
        ("train {data} -o x --fold 6", "no fold 6: the fold table has"),
        ("folds {data} -k 1", "1 fold of 10 tiles; choose 2 to 10 folds"),
        ("params --base resnet", "no base is called"),
        ("params --weights no.pt", "no.pt: no such file or folder; check --weights"),
        ("evaluate a -o x", "1 places given, 2 wanted; write `nuclora evaluate MODEL DATA -o OUT`"),
        ("evaluate a {data} -o x", "a: neither an adapter (nuclora.json) nor a run (run.json)"),
        ("evaluate --base mobile_sam {data} -o x -p boxes", "no such choice: boxes; choose one of oracle-box"),
        ("evaluate --base mobile_sam {data} -o x --precision fp8", "no such choice: fp8; choose one of no, bf16"),
        ("evaluate --base mobile_sam {data} -o x --set train.epochs=1", "only fields of evaluate can change"),
        ("report no/such/run", "no/such/run: holds no nuclora run (it has no run.json)"),
        ("data synth {data}", "synthetic: "),
    ],
)
def test_each_fault_is_named_with_its_mend(arguments, told, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nuclora", *arguments.format(data=tiny_data).split()])
    with pytest.raises(SystemExit) as done:
        run()
    captured = capsys.readouterr()
    assert (done.value.code, captured.out) == (2, "")
    assert _is_one_line(captured.err, told), captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("nonsense",), ("folds",), ("folds", ".", "--k", "2"), ("cv", ".")])
def test_wrong_use_is_exit_2(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("folds", ""), ("data", "check", ""), ("cv", "", "-o", "out"), ("evaluate", "a", "", "-o", "out")]
)
def test_an_empty_argument_is_not_the_current_folder(cli, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(cli(*arguments), "an argument is empty; name a folder")
    assert not list(tmp_path.iterdir())


# `doctor` does for any command: what it calls is replaced.
FAULTY = """
import os, signal
import nuclora.doctor
from nuclora.errors import NucloraError
from nuclora.training.interrupt import Stopped

def diagnose():
    {body}

nuclora.doctor.diagnose = diagnose
"""


def test_our_fault_is_exit_1_with_the_traceback():
    done = _nuclora("doctor", first=FAULTY.format(body="raise ZeroDivisionError('inside')"))
    assert done.returncode == 1
    assert "ZeroDivisionError: inside" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("nuclora: this is our fault, not yours; please report it")
    assert done.stdout == ""


def test_an_error_for_users_is_told_as_it_is():
    body = "raise NucloraError('wrong [bold]', path='a/b.tif', mend='do this')"
    done = _nuclora("doctor", first=FAULTY.format(body=body))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nuclora: a/b.tif: wrong [bold]; do this\n"


def test_stopped_is_exit_130():
    done = _nuclora("doctor", first=FAULTY.format(body="raise Stopped"))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == ("nuclora: stopped, everything is saved; run the same command again to go on\n")


def test_sigint_is_exit_130_without_a_traceback():
    done = _nuclora("doctor", first=FAULTY.format(body="os.kill(os.getpid(), signal.SIGINT)"))
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("params", "--base", "mobile_sam", "--json"), "trainable"),
        (("folds", "{data}", "-k", "2", "-o", "{out}", "--json"), "sha256"),
        (("data", "check", "{data}", "--json"), "faults"),
        (("weights", "list", "--json"), None),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_json_is_all_that_is_printed(arguments, key, tiny_data, tmp_path):
    filled = [part.format(data=tiny_data, out=tmp_path / "folds.csv") for part in arguments]
    result = CliRunner(env={"COLUMNS": "40"}).invoke(app, filled)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert key is None or key in document


def test_json_of_doctor_as_a_pipe_gets_it(monkeypatch):
    # As build servers set it; colours are no JSON.
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = _nuclora("doctor", "--json")
    assert done.returncode == 0
    assert {"Python", "torch"} <= {row["what"] for row in json.loads(done.stdout)}
    assert done.stderr == ""


def test_data_check_ends_with_2_where_training_would_be_spoilt(tiny_data: Path, tmp_path: Path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_data, broken)
    image = next(broken.rglob("*.png"))
    image.write_bytes(image.read_bytes()[:200])
    result = CliRunner().invoke(app, ["data", "check", str(broken), "--json"])
    assert result.exit_code == 2
    faults = json.loads(result.stdout)["faults"]
    assert [Path(fault["path"]).name for fault in faults] == [image.name]


def test_synth_then_folds_then_the_table(tmp_path: Path):
    from nuclora.data.folds import FoldTable

    data, table = tmp_path / "data", tmp_path / "folds.csv"
    runner = CliRunner(env={"COLUMNS": "200"})
    made = runner.invoke(app, ["data", "synth", str(data), "--tiles", "4", "--size", "64", "--organs", "2"])
    assert made.exit_code == 0
    dealt = runner.invoke(app, ["folds", str(data), "-k", "2", "-o", str(table)])
    assert dealt.exit_code == 0
    read = FoldTable.read(table)
    assert read.folds == (1, 2)
    assert read.sha256 in dealt.stdout
