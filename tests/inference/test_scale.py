"""Images at another magnification than the adapter's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nuclora.errors import NucloraError
from nuclora.inference import scale as scale_module
from nuclora.inference.predictor import Nuclei
from nuclora.inference.scale import labels_back, rescale, scale_to
from nuclora.io.slides import open_slide
from slide_makers import write_slide
from spots import SETTINGS, SpotPredictor, spots


@pytest.mark.parametrize(
    ("adapters", "own", "scale"),
    [(0.25, 0.5, 0.5), (0.5, 0.25, 2), (0.25, 0.2505, 1), (None, 0.5, 1), (0.25, None, 1)],
)
def test_the_scale_is_that_of_the_microns(adapters: float | None, own: float | None, scale: float) -> None:
    assert scale_to(adapters, own) == scale


@pytest.mark.parametrize("scale", [0.5, 0.37, 1.7])
def test_an_image_is_rescaled_as_a_slide_is(tmp_path: Path, scale: float) -> None:
    image = spots(90, 117)
    with open_slide(write_slide(tmp_path / "slide.tif", image, 0.5, levels=1)) as slide:
        expected = slide.read(0, 0, 117, 90, scale)
    np.testing.assert_array_equal(rescale(image, scale), expected)


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.7, 1.3, 1.7, 3.0])
@pytest.mark.parametrize("shape", [(64, 64), (63, 37), (5, 1)])
def test_a_rescaled_image_has_no_rim(scale: float, shape: tuple[int, int]) -> None:
    assert (rescale(np.full((*shape, 3), 120, np.uint8), scale) == 120).all()


@pytest.mark.parametrize("times", [2, 3])
def test_labels_come_back_to_their_pixels(times: int) -> None:
    labels = np.random.default_rng(0).permutation(100).reshape(10, 10).astype(np.int32)
    scores = np.arange(1, 100, dtype=np.float32)
    back, kept = labels_back(labels.repeat(times, 0).repeat(times, 1), scores, (10, 10), 1 / times)
    np.testing.assert_array_equal(back, labels)
    np.testing.assert_array_equal(kept, scores)


def test_a_nucleus_between_the_pixels_is_left_out_and_the_rest_is_numbered_anew() -> None:
    labels = np.zeros((8, 8), np.int32)
    labels[0, 0], labels[2:4, 2:4], labels[4:8, 4:8] = 1, 2, 3
    back, kept = labels_back(labels, np.array([0.1, 0.2, 0.3], np.float32), (2, 2), 0.25)
    np.testing.assert_array_equal(back, [[1, 0], [0, 2]])
    np.testing.assert_array_equal(kept, np.array([0.2, 0.3], np.float32))


def test_a_nucleus_whose_neck_falls_between_the_pixels_stays_in_one_piece() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[10:20, 5:13] = labels[10:20, 21:31] = labels[14, 13:21] = 1
    labels[30:34, 30:34] = 2
    back, kept = labels_back(labels, np.array([0.9, 0.8], np.float32), (20, 20), 0.5)
    expected = np.zeros((20, 20), np.int32)
    expected[5:10, 10:15], expected[15:17, 15:17] = 1, 2
    np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(kept, np.array([0.9, 0.8], np.float32))


class DarkPredictor(SpotPredictor):
    """What is dark is a nucleus; remembers the shapes that it saw."""

    def __init__(self, microns_per_pixel: float | None) -> None:
        super().__init__()
        self.microns_per_pixel = microns_per_pixel
        self.shapes: list[tuple[int, ...]] = []

    def maps(self, image, views, **options):  # type: ignore[no-untyped-def, override]
        self.shapes.append(image.shape[:2])
        return image

    def decode_maps(self, maps, shape, settings):  # type: ignore[no-untyped-def, override]
        labels, count = ndimage.label(maps.mean(axis=2) < 128)
        return Nuclei(labels.astype(np.int32), np.linspace(0, 1, count, dtype=np.float32))


def _discs() -> np.ndarray:
    image = np.full((80, 100, 3), 230, np.uint8)
    rows, columns = np.mgrid[:80, :100]
    for row, column in ((20, 20), (50, 30), (40, 80)):
        image[np.hypot(rows - row, columns - column) < 8] = 60
    return image


@pytest.mark.parametrize(("mpp", "shape"), [(0.5, (160, 200)), (0.125, (40, 50)), (0.25, (80, 100)), (None, (80, 100))])
def test_the_model_sees_its_own_scale_and_labels_fit_the_image(mpp: float | None, shape: tuple[int, int]) -> None:
    predictor, image = DarkPredictor(0.25), _discs()
    expected = ndimage.label(image.mean(axis=2) < 128)[0]
    labels, scores = predictor.nuclei(image, mpp=mpp)
    assert predictor.shapes == [shape]
    assert labels.shape == image.shape[:2]
    assert len(scores) == labels.max() == 3
    for label in (1, 2, 3):
        found = labels == label
        true = expected == np.bincount(expected[found]).argmax()
        assert (found & true).sum() > 0.85 * (found | true).sum()
    np.testing.assert_array_equal(predictor.segment(image, mpp=mpp), labels)


def test_without_the_adapters_scale_nothing_is_rescaled() -> None:
    predictor = DarkPredictor(None)
    predictor.nuclei(_discs(), mpp=0.5)
    assert predictor.shapes == [(80, 100)]


def test_prompts_are_not_rescaled() -> None:
    with pytest.raises(NucloraError, match="oracle-box rescales no image"):
        DarkPredictor(0.25).segment(_discs(), "oracle-box", mpp=0.5)


def test_an_image_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_module, "MAX_PIXELS", 31_999)
    with pytest.raises(NucloraError, match="enlarged 2 times"):
        DarkPredictor(0.25).nuclei(_discs(), mpp=0.5)


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), 0.0001])
def test_a_size_that_no_pixel_has_is_refused(mpp: float) -> None:
    with pytest.raises(NucloraError, match=r"^mpp .*: not a plausible size of a pixel"):
        DarkPredictor(0.25).nuclei(_discs(), mpp=mpp)


class AskedPredictor(SpotPredictor):
    def __init__(self):
        super().__init__()
        self.microns_per_pixel = 0.25
        self.asked = []

    def maps(self, image, views, **options):
        self.asked.append(views)
        return image

    def decode_maps(self, maps, shape, settings):
        self.asked.append(settings)
        return Nuclei(np.zeros(shape, np.int32), np.zeros(0, np.float32))


def test_settings_that_are_given_go_before_the_adapters_own():
    predictor, image = AskedPredictor(), np.zeros((20, 30, 3), np.uint8)
    other = SETTINGS.with_views(4).model_copy(update={"min_size": 7})
    predictor.nuclei(image, other)
    predictor.segment(image, "automatic", other)
    predictor.segment(image, "automatic", other, mpp=0.5)
    assert predictor.asked == [4, other] * 3
    predictor.asked.clear()
    predictor.nuclei(image)
    predictor.segment(image)
    assert predictor.asked == [SETTINGS.decode.views, SETTINGS] * 2
