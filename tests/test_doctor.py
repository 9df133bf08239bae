from __future__ import annotations

import json
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nuclora import doctor
from nuclora.cli.main import app
from nuclora.doctor import Finding, diagnose
from nuclora.inference.loading import usual_device
from nuclora.machine import environment

Usage = namedtuple("Usage", "total used free")


def _finding(what: str) -> Finding:
    found = [finding for finding in diagnose() if finding.what == what]
    assert len(found) == 1, what
    return found[0]


def test_a_checkout_on_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["commit"] is None


def test_this_machine_is_good_and_its_packages_are_named_with_their_versions():
    findings = diagnose()
    assert [finding.what for finding in findings if finding.state == "bad"] == []
    found = {finding.what: finding.found for finding in findings}
    for package in ("torch", "transformers", "peft", "numpy"):
        assert found[package] == metadata.version(package)
    assert {"Python", "processor", "memory", "disk here", "base mobile_sam", "base sam_vit_h"} <= found.keys()


def test_what_is_missing_or_too_old_comes_with_the_command_that_mends_it(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "kornia" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert _finding("peft") == Finding("peft", "bad", "not installed", "pip install 'peft>=0.17'")
    assert _finding("kornia") == Finding("kornia", "bad", "0.1", "pip install 'kornia>=0.8'")
    result = CliRunner(env={"COLUMNS": "150"}).invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "pip install 'peft>=0.17'" in result.stdout


@pytest.mark.parametrize("name", ["torch", "psutil"])
def test_without_a_package_the_rest_is_still_told(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    found = {finding.what for finding in diagnose()}
    assert {"Python", name, "disk here"} <= found
    assert ("memory" in found) == (name != "psutil")
    assert ("processor" in found) == (name != "torch")


def test_an_optional_package_is_only_a_note(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    finding = _finding("tensorboard")
    assert (finding.state, finding.mend) == ("note", "pip install 'nuclora[track]'")


def test_a_gpu_that_only_training_uses_is_a_note(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    finding = _finding("GPU")
    assert (finding.state, finding.found) == ("note", "Apple's, by MPS")
    assert finding.mend == "training computes on it; nuclora predict and nuclora evaluate on the CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usual_device().type == "cpu"


@pytest.mark.parametrize(("free", "state"), [(4e9, "note"), (6e9, "good")])
def test_a_nearly_full_disk_is_a_note(free, state, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(1e12, 1e12 - free, free))
    finding = _finding("disk here")
    assert (finding.state, finding.found) == (state, f"{free / 1e9:.0f} GB free")
    assert bool(finding.mend) == (state == "note")


def test_weights_are_found_or_their_command_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("NUCLORA_WEIGHTS", str(tmp_path))
    (tmp_path / "mobile_sam.pt").touch()
    assert _finding("base mobile_sam") == Finding("base mobile_sam", "good", str(tmp_path / "mobile_sam.pt"))
    missing = _finding("base sam_vit_h")
    assert (missing.state, missing.found) == ("note", "weights not here")
    assert "nuclora weights fetch sam_vit_h" in missing.mend


def test_as_a_table_and_as_json():
    result = CliRunner(env={"COLUMNS": "150"}).invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "torch" in result.stdout
    rows = json.loads(CliRunner(env={"COLUMNS": "40"}).invoke(app, ["doctor", "--json"]).stdout)
    assert all(row.keys() == {"what", "state", "found", "mend"} for row in rows)
    assert {"Python", "torch", "memory"} <= {row["what"] for row in rows}
