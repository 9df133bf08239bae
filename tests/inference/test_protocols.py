from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nuclora.data import open_tiles
from nuclora.errors import NucloraError
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Predictor
from nuclora.inference.protocols import DESCRIPTIONS, segment
from nuclora.metrics import score
from nuclora.recipe import PROTOCOLS, EvaluateSettings, GridSettings, Protocol

SETTINGS = EvaluateSettings(grid=GridSettings(points_per_side=4))
MakeFake = Callable[..., Predictor]


class Forbidden:
    """Stands for a truth that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the truth was looked at: {name}")


def _rectangles() -> NDArray[np.int32]:
    labels = np.zeros((96, 128), dtype=np.int32)
    labels[6:18, 8:32], labels[60:84, 40:64], labels[0:12, 100:128] = 2, 5, 6
    return labels


def _image(shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)


def test_oracle_boxes_bring_back_rectangles_of_a_wide_image(make_fake: MakeFake) -> None:
    truth = _rectangles()
    labels = segment(make_fake(64), _image(truth.shape), truth, "oracle-box", SETTINGS)
    assert np.unique(labels).tolist() == [0, 1, 2, 3]
    # The input is coarser by half, so borders may be off by a pixel.
    assert score(truth, labels)["aji"] > 0.85
    exact = segment(make_fake(128), _image(truth.shape), truth, "oracle-box", SETTINGS)
    assert [np.argwhere(exact == n)[:, 1].tolist() for n in (1, 2, 3)] == [
        np.argwhere(truth == n)[:, 1].tolist() for n in (2, 5, 6)
    ]


def test_oracle_points_hit_every_nucleus(make_fake: MakeFake) -> None:
    truth = _rectangles()
    labels = segment(make_fake(64), _image(truth.shape), truth, "oracle-point", SETTINGS)
    assert labels.max() == 3
    for number, identity in enumerate((2, 5, 6), start=1):
        assert ((labels == number) & (truth == identity)).sum() > 0.5 * (labels == number).sum()


def test_automatic_never_sees_the_truth(make_fake: MakeFake) -> None:
    image = _image((96, 128))
    predictor = make_fake(64)
    blind = segment(predictor, image, None, "automatic", SETTINGS)
    assert blind.max() == 16
    watched = segment(predictor, image, Forbidden(), "automatic", SETTINGS)  # type: ignore[arg-type]
    assert np.array_equal(blind, watched)
    with pytest.raises(AssertionError, match="looked at"):
        segment(predictor, image, Forbidden(), "oracle-box", SETTINGS)  # type: ignore[arg-type]


def test_automatic_of_a_base_drops_masks_too_large_for_a_nucleus(make_fake: MakeFake) -> None:
    image = _image((64, 64))
    discs = segment(make_fake(64, multimask_points=True), image, None, "automatic", SETTINGS)
    assert discs.max() == 16
    assert np.array_equal(discs, segment(make_fake(64), image, None, "automatic", SETTINGS))


def test_automatic_keeps_one_of_masks_that_overlap(make_fake: MakeFake) -> None:
    """1,024 points two pixels apart, each with a disc of 12 pixels."""

    def labels(overlap_threshold: float) -> NDArray[np.int32]:
        grid = GridSettings(points_per_side=32, overlap_threshold=overlap_threshold)
        settings = SETTINGS.model_copy(update={"grid": grid})
        return segment(make_fake(64), _image((64, 64)), None, "automatic", settings)

    # Boxes that hardly overlap leave room for 5 or 6 discs a side and their corners.
    assert 25 <= labels(0.05).max() <= 50
    assert labels(0.05).max() < labels(0.5).max()


@pytest.mark.parametrize("protocol", ["oracle-box", "oracle-point"])
def test_no_nuclei_no_labels(make_fake: MakeFake, protocol: str) -> None:
    labels = segment(make_fake(64), _image((30, 40)), np.zeros((30, 40), np.int32), protocol, SETTINGS)
    assert labels.shape == (30, 40)
    assert labels.dtype == np.int32
    assert not labels.any()


def test_automatic_without_good_masks_is_empty(make_fake: MakeFake) -> None:
    strict = SETTINGS.model_copy(update={"grid": GridSettings(points_per_side=4, iou_threshold=1.0)})
    assert not segment(make_fake(64), _image((30, 40)), None, "automatic", strict).any()


def test_small_nuclei_are_left_out(make_fake: MakeFake) -> None:
    truth = np.zeros((64, 64), np.int32)
    truth[4:7, 4:7], truth[20:30, 20:30] = 1, 2
    labels = segment(make_fake(64), _image((64, 64)), truth, "oracle-box", SETTINGS)
    assert labels.max() == 1
    assert labels[25, 25] == 1


def test_wrong_use_is_told(make_fake: MakeFake) -> None:
    with pytest.raises(NucloraError, match="oracle-box takes its prompts from the truth"):
        segment(make_fake(64), _image((64, 64)), None, "oracle-box", SETTINGS)
    with pytest.raises(NucloraError, match="no protocol 'magic'; choose one of oracle-box"):
        segment(make_fake(64), _image((64, 64)), None, "magic", SETTINGS)


def test_every_protocol_is_described_and_oracles_say_what_they_are() -> None:
    assert set(DESCRIPTIONS) == set(PROTOCOLS)
    for protocol, text in DESCRIPTIONS.items():
        assert ("upper bound" in text) == protocol.startswith("oracle")


def test_mobile_sam_with_truth_boxes_on_a_real_tile(shared_data: Path) -> None:
    weights = shared_data / "weights" / "mobile_sam.pt"
    tiles = open_tiles(shared_data / "nuinsseg" / "official-sample")
    sample = tiles["human liver/human_liver_01"].read()
    predictor = load_model("mobile_sam", weights=weights, input_size=512)
    labels = predictor.segment(sample.image, "oracle-box", SETTINGS, labels=sample.labels)
    result = score(sample.labels, labels, sample.ignore)
    assert result["aji"] > 0.4
    assert result["dice"] > 0.7


def test_small_nuclei_are_left_out_of_points_too(make_fake):
    truth = np.zeros((64, 64), np.int32)
    truth[20:30, 20:30] = 1
    for least, count in ((50, 1), (500, 0)):
        settings = SETTINGS.model_copy(update={"min_size": least})
        assert segment(make_fake(64), _image((64, 64)), truth, "oracle-point", settings).max() == count


def test_a_base_answers_oracle_points_with_nuclei_and_not_the_whole_tissue(make_fake):
    truth = np.zeros((64, 64), np.int32)
    truth[10:20, 10:20], truth[40:50, 40:50] = 1, 2
    settings = SETTINGS.model_copy(update={"grid": GridSettings(points_per_side=4, largest_share=0.1)})
    several, one = (
        segment(make_fake(64, multimask_points=many), _image((64, 64)), truth, "oracle-point", settings)
        for many in (True, False)
    )
    assert one.max() == 2
    np.testing.assert_array_equal(several, one)


def test_what_two_oracles_claim_goes_to_the_one_that_is_surer_there(make_fake):
    truth = np.zeros((64, 64), np.int32)
    # The box of the first reaches over the left of the second.
    truth[4:40, 4:8] = truth[36:40, 4:24] = 1
    truth[8:28, 12:50] = 2
    boxes = segment(make_fake(64), _image((64, 64)), truth, "oracle-box", SETTINGS)
    assert (boxes[12:24, 23] == 2).all()
    near = np.zeros((64, 64), np.int32)
    near[20:27, 20:27], near[20:27, 28:35] = 1, 2
    points = segment(make_fake(64), _image((64, 64)), near, "oracle-point", SETTINGS)
    assert (points[23, 20:27] == 1).all()
    assert (points[23, 29:35] == 2).all()


@pytest.mark.parametrize("protocol", ["oracle-box", "oracle-point"])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda truth: truth.T, r"int32 of shape \(128, 96\)"),
        (lambda truth: truth[None], r"int32 of shape \(1, 96, 128\)"),
        (lambda truth: truth > 0, "bool of shape"),
        (lambda truth: truth.astype(float), "float64 of shape"),
        (lambda truth: -truth, "an id of -6"),
        (lambda truth: truth.tolist(), "list"),
    ],
)
def test_a_truth_that_is_none_of_the_image_is_refused(
    make_fake: MakeFake, protocol: Protocol, change: Callable[[NDArray[np.int32]], Any], what: str
) -> None:
    truth = _rectangles()
    with pytest.raises(NucloraError, match=f"no label map of the image: {what}.*; give whole numbers from 0"):
        segment(make_fake(64), _image(truth.shape), change(truth), protocol, SETTINGS)
