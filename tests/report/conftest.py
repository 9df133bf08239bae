from __future__ import annotations

import pytest
from report_fakes import fake_run, synthetic_tiles

from nuclora.data.tiles import TileSet
from nuclora.report.html import write_report
from nuclora.run import Run


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> TileSet:
    """Twelve tiles; one organ's name would break out of a page that does not escape it."""
    root = tmp_path_factory.mktemp("data") / "tiles"
    return synthetic_tiles(root, {"human liver": 5, "mouse <b>$spleen$ & co": 4, "mouse heart": 3})


@pytest.fixture(scope="session")
def run(tiles: TileSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three folds."""
    return fake_run(tmp_path_factory.mktemp("runs") / "whole", tiles, k=3, trained=(1, 2, 3))


@pytest.fixture(scope="session")
def partial_run(tiles: TileSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One of three folds is trained, `automatic` ran on one tile of it."""
    folder = tmp_path_factory.mktemp("runs") / "partial"
    return fake_run(folder, tiles, k=3, trained=(2,), protocols=("oracle-box", "automatic"), automatic_tiles=1)


@pytest.fixture(scope="session")
def dense_run(tiles: TileSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three folds with a dense decoder: scored nuclei, tuned thresholds."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    return fake_run(folder, tiles, k=3, trained=(1, 2, 3), recipe="nuclora", protocols=("automatic", "oracle-box"))


@pytest.fixture(scope="session")
def page(run: Run) -> str:
    """The page of the finished run."""
    return write_report(run).read_text("utf-8")
