"""A run folder as `nuclora cv` leaves it, with predictions made by spoiling the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.data.tiles import Sample, TileSet
from nuclora.evaluation import Row
from nuclora.inference.evaluate import nucleus_outcomes, score_tile
from nuclora.inference.predictor import Nuclei
from nuclora.io.colouring import neighbour_pairs
from nuclora.metrics.errors import per_nucleus
from nuclora.models.adapter import AdapterCard, write_card
from nuclora.recipe import Recipe, load_recipe
from nuclora.run import Run

Labels = NDArray[np.int32]


def spoil(truth: Labels, amount: float, rng: np.random.Generator) -> Labels:
    """Truth with some nuclei dropped, merged, split, worn off, and some invented."""
    labels = truth.copy()
    for first, second in neighbour_pairs(truth, 2).tolist():
        if rng.random() < 0.5 * amount:
            labels[labels == second] = first
    next_id = int(labels.max()) + 1
    for label in np.unique(truth[truth > 0]).tolist():
        mask = labels == label
        fate = rng.random()
        if fate < 0.5 * amount:
            labels[mask] = 0
        elif fate < 0.65 * amount:
            columns = np.nonzero(mask.any(axis=0))[0]
            if len(columns) > 8:
                half = mask.copy()
                half[:, : columns.mean().astype(int)] = False
                labels[half] = next_id
                next_id += 1
        elif fate < 1.5 * amount:
            labels[mask & ~ndimage.binary_erosion(mask, iterations=1 + int(rng.random() < amount))] = 0
    rows, columns = np.ogrid[: truth.shape[0], : truth.shape[1]]
    for _ in range(rng.poisson(0.15 * amount * len(np.unique(truth)))):
        y, x = rng.integers(truth.shape[0]), rng.integers(truth.shape[1])
        disc = (rows - y) ** 2 + (columns - x) ** 2 < rng.integers(4, 14) ** 2
        labels[disc & (labels == 0) & (truth == 0)] = next_id
        next_id += 1
    return labels


def synthetic_tiles(root: Path, groups: Mapping[str, int], size: int = 96) -> TileSet:
    """Discs on noise, in the layout of NuInsSeg."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:size, :size]
    for group, count in groups.items():
        for number in range(1, count + 1):
            name = f"{group.replace(' ', '_')}_{number:02d}"
            labels = np.zeros((size, size), np.uint16)
            for label in range(1, 3 + 2 * number):
                y, x = rng.integers(4, size - 4, 2)
                labels[(rows - y) ** 2 + (columns - x) ** 2 < rng.integers(4, 10) ** 2] = label
            image = np.where((labels > 0)[..., None], (90, 60, 140), (225, 180, 210)).astype(np.uint8)
            for folder in ("tissue images", "label masks modify"):
                (root / group / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / group / "tissue images" / f"{name}.png")
            tifffile.imwrite(root / group / "label masks modify" / f"{name}.tif", labels)
    return open_tiles(root)


def fake_run(
    folder: Path,
    tiles: TileSet,
    *,
    trained: Sequence[int] = (1, 2, 3, 4, 5),
    protocols: Sequence[str] = ("oracle-box", "oracle-point", "automatic"),
    automatic_tiles: int | None = None,
    recipe: str = "paper",
    base: str = "mobile_sam",
    steps: int = 40,
    k: int = 5,
    settings: Sequence[str] = (),
) -> Run:
    """A run with zero-shot scores of all tiles and fine-tuned ones of the trained folds."""
    overrides = [*settings, f"base={base}", f"evaluate.protocols={json.dumps(list(protocols))}"]
    if automatic_tiles:
        overrides.append(f"evaluate.automatic_tiles={automatic_tiles}")
    table = make_folds(tiles, k, 42)
    arguments = {
        "recipe": load_recipe(recipe, overrides),
        "folds": table,
        "base": {"name": base, "sha256": "ab" * 32, "path": "base.pt"},
        "data": {"root": str(tiles.root), "format": tiles.format},
    }
    for _ in range(2):
        run = Run.start(folder, **arguments)
        run.begin_session("no")
    amounts = {"oracle-box": 0.12, "oracle-point": 0.2, "automatic": 0.3}
    for fold in table.folds:
        fake_training(run, fold, steps if fold in trained else 0)
        taken = 0
        for name in table.test(fold):
            sample = tiles[name].read()
            rng = np.random.default_rng([fold, taken])
            hardness = rng.gamma(4, 0.25)
            for protocol in protocols:
                if protocol == "automatic" and automatic_tiles and taken >= automatic_tiles:
                    continue
                place = {"tile": name, "group": tiles[name].group, "fold": fold}
                stages = [(run.zero_shot(protocol), 1.6, False)]
                if fold in trained:
                    scored = protocol == "automatic" and run.recipe.dense is not None
                    stages.append((run.fine_tuned(fold, protocol), 1.0, scored))
                for evaluation, factor, scored in stages:
                    labels = spoil(sample.labels, min(0.6, factor * hardness * amounts[protocol]), rng)
                    nuclei = fake_outcomes(sample, labels, rng) if scored else None
                    evaluation.add(place | score_tile(sample, labels), labels, nuclei)
            taken += 1
    return run


def fake_outcomes(sample: Sample, labels: Labels, rng: np.random.Generator) -> list[Row]:
    """What `evaluate_tiles` notes of nuclei whose scores know a little of their IoU, and promise a little too much."""
    ious = np.zeros(int(labels.max()) + 1)
    found = per_nucleus(labels, sample.labels)
    ious[found.id] = found.best_iou
    scores = np.clip(0.35 + 0.55 * ious + rng.normal(0, 0.12, len(ious)), 0, 1)
    return nucleus_outcomes(sample, Nuclei(labels, scores[1:].astype(np.float32)))


def fake_card(run: Run, fold: int) -> AdapterCard:
    """The card of a fold's adapter, with thresholds where the recipe tunes them."""
    recipe: Recipe = run.recipe
    tuned = {"foreground": 0.5 + fold / 100, "smooth": 3.5, "valley": 0.75, "core": 0.4, "min_size": 30.0}
    return AdapterCard(
        base=recipe.base,
        base_sha256=run.info["base"]["sha256"],
        input_size=recipe.input.size or 640,
        normalise="imagenet",
        thresholds=tuned if recipe.evaluate.tune else {},
        recipe=recipe.model_dump(mode="json"),
    )


def fake_training(run: Run, fold: int, steps: int) -> None:
    """Make a fold look trained for so many steps."""
    rng = np.random.default_rng(fold)
    epochs = run.recipe.train.epochs
    log = run.training_log(fold)
    losses = []
    for step in range(1, steps + 1):
        epoch = (step - 1) * epochs // steps + 1
        losses.append(0.0025 + 0.01 * np.exp(-4 * step / steps) + 0.002 * rng.gamma(1.0))
        numbers = {"loss": losses[-1], "seconds": 2.0, "tiles_per_second": 2.0, "memory_mb": 1850.0 + step % 7}
        log.append(json.dumps({"kind": "step", "epoch": epoch, "step": step, **numbers}))
        if step == steps or step * epochs // steps + 1 > epoch:
            log.append(json.dumps({"kind": "epoch", "epoch": epoch, "step": step, "loss": float(np.mean(losses))}))
            rise = 1 - np.exp(-2.0 * step / steps)
            scores = {
                name: 0.4 + high * rise + rng.normal(0, 0.012)
                for name, high in (("dice", 0.5), ("aji", 0.32), ("pq", 0.28))
            }
            protocol = "oracle-box" if run.recipe.dense is None else "automatic"
            place = {"kind": "validation", "epoch": epoch, "step": step, "protocol": protocol, "tiles": 16}
            log.append(json.dumps(place | scores))
            losses = []
    if steps:
        write_card(run.adapter_folder(fold), fake_card(run, fold))
