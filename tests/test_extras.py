"""Optional packages: told in one line where they are missing, by the extra that has them."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from nuclora.errors import NucloraError
from nuclora.extras import EXTRAS, require

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_a_missing_package_is_told_with_the_extra_that_has_it(package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NucloraError) as caught:
        require(package, "--this")
    assert str(caught.value) == f"--this needs the package {package}; pip install 'nuclora[{extra}]'"
    has = " ".join(tomllib.loads(_PYPROJECT.read_text())["project"]["optional-dependencies"][extra])
    assert package in has


def test_a_package_that_is_there_but_broken_says_why(tmp_path, monkeypatch):
    (tmp_path / "zarr.py").write_text("import no_such_codec\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zarr", raising=False)
    with pytest.raises(NucloraError, match=r"needs the package zarr, which cannot be imported \(No module named 'no_"):
        require("zarr", "--format zarr")


def test_what_is_asked_for_is_given():
    pytest.importorskip("pyarrow")
    assert require("pyarrow", "Parquet") is sys.modules["pyarrow"]
