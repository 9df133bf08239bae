from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

from nuclora import metrics

MODULES = [module.name for module in pkgutil.iter_modules(metrics.__path__, "nuclora.metrics.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_metrics_need_no_torch() -> None:
    code = "import sys, nuclora.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
