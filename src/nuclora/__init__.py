"""nuclora: teach the Segment Anything Model your nuclei.

The public names are loaded when they are used, so that importing nuclora costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuclora import metrics as metrics
    from nuclora.data import open_tiles as open_tiles
    from nuclora.data.folds import FoldTable as FoldTable
    from nuclora.data.folds import make_folds as make_folds
    from nuclora.errors import NucloraError as NucloraError
    from nuclora.inference.loading import load_model as load_model
    from nuclora.recipe import Recipe as Recipe
    from nuclora.recipe import load_recipe as load_recipe
    from nuclora.report.html import write_report as write_report
    from nuclora.run import Run as Run
    from nuclora.training.crossval import cross_validate as cross_validate

_HOME = {
    "FoldTable": "nuclora.data.folds",
    "NucloraError": "nuclora.errors",
    "Recipe": "nuclora.recipe",
    "Run": "nuclora.run",
    "cross_validate": "nuclora.training.crossval",
    "load_model": "nuclora.inference.loading",
    "load_recipe": "nuclora.recipe",
    "make_folds": "nuclora.data.folds",
    "open_tiles": "nuclora.data",
    "write_report": "nuclora.report.html",
}

__all__ = [*sorted(_HOME), "metrics"]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("nuclora.metrics")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'nuclora' has no attribute {name!r}")
