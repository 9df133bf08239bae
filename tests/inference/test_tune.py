from __future__ import annotations

import numpy as np
import pytest

from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.data.targets import dense_targets
from nuclora.errors import NucloraError
from nuclora.inference import tune
from nuclora.inference.predictor import Maps
from nuclora.inference.tune import Prediction, Trial, _trial, tune_decode
from nuclora.metrics import aji, panoptic_quality
from nuclora.recipe import DecodeSettings


@pytest.fixture(scope="module")
def predictions() -> list[Prediction]:
    """Maps of a decoder whose foreground is too low by a third, and whose distance by a half."""
    found = []
    for seed in range(2):
        sample = synthesize_tile(96, seed, ORGANS[0])
        maps = dense_targets(sample.labels)
        maps[0] *= 0.65
        maps[2] *= 0.5
        found.append((Maps(maps, np.zeros_like(maps[0])), sample.labels, sample.ignore))
    return found


def test_finds_better_settings_and_tells_every_try(predictions: list[Prediction]) -> None:
    start = DecodeSettings(foreground=0.6, core=0.5, views=4)
    settings, min_size, trials = tune_decode(predictions, start, 15)
    assert (trials[0].settings, trials[0].min_size) == (start, 15)
    best = max(trials, key=lambda trial: trial.objective)
    assert best.objective > trials[0].objective + 0.1
    assert (settings, min_size) == (best.settings, best.min_size)
    assert settings.foreground < 0.6
    assert settings.core < 0.5
    assert settings.views == 4
    assert len({(trial.settings, trial.min_size) for trial in trials}) == len(trials)


def test_objective_is_the_mean_of_both_measures_over_tiles(predictions: list[Prediction]) -> None:
    settings, min_size, trials = tune_decode(predictions, DecodeSettings(), 10)
    chosen = next(trial for trial in trials if (trial.settings, trial.min_size) == (settings, min_size))
    scores = []
    for maps, truth, ignore in predictions:
        found, _ = tune.find_nuclei(*maps, (96, 96), settings, min_size)
        scores.append((aji(truth, found, ignore), panoptic_quality(truth, found, ignore).pq))
    np.testing.assert_allclose((chosen.aji, chosen.pq), np.mean(scores, axis=0))
    assert chosen.objective == pytest.approx(np.mean(scores))


def test_equal_predictions_give_equal_settings(predictions: list[Prediction]) -> None:
    assert tune_decode(predictions, DecodeSettings(), 10) == tune_decode(predictions, DecodeSettings(), 10)


def test_several_processes_try_the_same(predictions: list[Prediction], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    for cores in (1, 2):
        monkeypatch.setattr(tune, "usable_cores", lambda cores=cores: cores)
        tried.append(tune_decode(predictions, DecodeSettings(), 10))
    assert tried[0] == tried[1]


def test_ties_keep_what_is_set() -> None:
    maps = Maps(np.zeros((5, 8, 8), np.float32), np.zeros((8, 8), np.float32))
    empty = (maps, np.zeros((16, 16), np.int32), np.zeros((16, 16), bool))
    start = DecodeSettings(smooth=3.2, core=0.33)
    settings, min_size, trials = tune_decode([empty], start, 17)
    assert (settings, min_size) == (start, 17)
    assert {trial.objective for trial in trials} == {1.0}


def test_every_value_of_the_grids_is_a_valid_setting() -> None:
    for field, grid in tune._GRIDS.items():
        for value in grid:
            if field != "min_size":
                assert getattr(DecodeSettings.model_validate({field: value}), field) == value


def test_refuses_no_tiles() -> None:
    with pytest.raises(NucloraError, match="no tiles"):
        tune_decode([], DecodeSettings(), 10)


def test_one_tile_tells_nothing_and_two_that_agree_do():
    def trial(*by_tile: float) -> Trial:
        return Trial(DecodeSettings(), 10, 0, 0, 0, by_tile)

    assert not trial(0.9).clearly_better_than(trial(0.1))
    assert trial(0.6, 0.7).clearly_better_than(trial(0.5, 0.6))
    assert not trial(0.9, 0.5).clearly_better_than(trial(0.5, 0.7))


def test_what_one_tile_alone_gains_by_changes_nothing(monkeypatch):
    def tried(predictions, keys, processes):
        found = []
        for settings, min_size in keys:
            by_tile = (0.9, 0.4) if settings.smooth == 3.0 else (0.5, 0.6)
            found.append(Trial(settings, min_size, 0, np.mean(by_tile), np.mean(by_tile), by_tile))
        return found

    monkeypatch.setattr(tune, "_try", tried)
    start = DecodeSettings(smooth=3.5)
    settings, _, trials = tune_decode([None, None], start, 10)
    assert max(trial.objective for trial in trials) == pytest.approx(0.65)
    assert settings == start


def test_vague_areas_do_not_count_in_tuning():
    truth = synthesize_tile(96, 0, ORGANS[0]).labels
    maps = dense_targets(truth)
    known = truth.copy()
    known[:, 48:] = 0
    ignore = np.zeros(truth.shape, bool)
    ignore[:, 48:] = True
    both = [(Maps(maps, np.zeros_like(maps[0])), known, vague) for vague in (ignore, np.zeros_like(ignore))]
    with_ignore, without = (tune._try([one], [(DecodeSettings(), 10)], 1)[0] for one in both)
    assert with_ignore.pq > 0.8 > without.pq


def test_a_second_round_finds_what_the_first_made_worth_while(monkeypatch):
    first, *_, last = tune._GRIDS

    def tried(predictions, keys, processes):
        found = []
        for settings, min_size in keys:
            grown = min_size == 50
            value = 0.5 + 0.1 * grown + 0.1 * (grown and settings.agreement == 0.6)
            found.append(Trial(settings, min_size, 0, value, value, (value, value)))
        return found

    monkeypatch.setattr(tune, "_try", tried)
    assert (first, last) == ("agreement", "min_size")
    settings, min_size, _ = tune_decode([None, None], DecodeSettings(), 10)
    assert (settings.agreement, min_size) == (0.6, 50)


def test_a_gain_counts_from_one_standard_error_of_its_mean():
    def trial(*by_tile):
        return Trial(DecodeSettings(), 10, 0, 0, 0, by_tile)

    # Errors are .101 and .113.
    assert trial(0.8, 0.45, 0.8, 0.45).clearly_better_than(trial(0.5, 0.5, 0.5, 0.5))
    assert not trial(0.8, 0.41, 0.8, 0.41).clearly_better_than(trial(0.5, 0.5, 0.5, 0.5))
    made = _trial(DecodeSettings(), 10, np.array([[0.9, 0.2, 0.4], [0.7, 0.6, 0.8]]))
    assert made.by_tile == pytest.approx((0.3, 0.7))
    assert (made.dice, made.objective) == pytest.approx((0.8, 0.5))
