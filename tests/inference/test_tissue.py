"""Tissue and glass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nuclora.inference.tissue import tissue_mask
from nuclora.io.slides import open_slide

PINK, PURPLE, PALE = (225, 170, 205), (120, 70, 150), (236, 205, 226)


def glass(height: int = 200, width: int = 300, colour: int = 243) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 2.5, (height, width, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def slide() -> np.ndarray:
    """Tissue from (50, 60) to (150, 200) with a gland and a large lumen, dust, and a pen stroke of black ink."""
    picture = glass()
    picture[50:150, 60:200] = PINK
    picture[80:110, 80:120] = PURPLE
    picture[60:75, 140:160] = glass(15, 20)
    picture[85:145, 130:190] = glass(60, 60)
    picture[20:23, 20:23] = PURPLE
    picture[180:186, 30:280] = 40
    return picture


def test_tissue_is_found_with_a_margin_without_dust_and_ink(slide: np.ndarray) -> None:
    mask = tissue_mask(slide)
    assert mask.shape == slide.shape[:2]
    assert mask[50:84, 60:200].all(), "the gland is filled"
    assert mask[47:50, 60:200].all(), "a margin of 40 microns"
    assert not mask[100:130, 145:175].any(), "the lumen is glass"
    outside = mask.copy()
    outside[42:158, 52:208] = False
    assert not outside.any()


def test_glass_alone_is_empty_at_any_brightness() -> None:
    for colour in (255, 243, 200):
        assert not tissue_mask(glass(colour=colour)).any()
    assert not tissue_mask(np.full((1, 1, 3), 255, np.uint8)).any()


@pytest.mark.parametrize("second", [PURPLE, PALE])
def test_tissue_alone_is_kept_whole_though_it_is_of_two_shades(second: tuple[int, int, int]) -> None:
    picture = np.full((100, 100, 3), PINK, np.uint8)
    picture[:, 50:] = second
    assert tissue_mask(picture).all()


def test_a_picture_smaller_than_a_speck_may_be_tissue() -> None:
    assert tissue_mask(np.full((3, 4, 3), PURPLE, np.uint8)).all()


@pytest.mark.parametrize("place", [np.s_[4:8, 5:9], np.s_[:2, 3:6], np.s_[10:, 10:]])
def test_little_tissue_in_a_picture_little_larger_than_a_speck_is_kept(place: tuple[slice, slice]) -> None:
    picture = glass(13, 13)
    picture[place] = PURPLE
    assert tissue_mask(picture)[place].all()


def test_a_speck_that_the_pictures_edge_cuts_may_be_more_tissue(slide: np.ndarray) -> None:
    slide[20:23, :3] = slide[:3, 100:103] = slide[-3:, -3:] = PURPLE
    mask = tissue_mask(slide)
    assert mask[20:23, :3].all()
    assert mask[:3, 100:103].all()
    assert mask[-3:, -3:].all()
    assert not mask[18:25, 18:25].any(), "dust"


@pytest.mark.parametrize("microns", [8.0, 16.0])
def test_the_scale_of_the_thumbnail_changes_little(microns: float, slide: np.ndarray) -> None:
    fine = np.kron(slide, np.ones((2, 2, 1), np.uint8))
    step = round(microns / 4)
    share = tissue_mask(fine[::step, ::step], microns).mean()
    assert share == pytest.approx(tissue_mask(slide, 8.0).mean(), rel=0.1)


@pytest.mark.parametrize(
    ("name", "microns", "least", "most"), [("cmu_small_region", 0.499, 0.4, 0.9), ("tcga-cr-7395", 4.0, 0.5, 0.9)]
)
def test_real_slides(name: str, microns: float, least: float, most: float, shared_data: Path) -> None:
    pytest.importorskip("openslide")
    with open_slide(shared_data / "slides" / f"{name}.svs", microns) as slide:
        thumbnail = slide.read(0, 0, slide.width, slide.height, 10 / microns)
    mask = tissue_mask(thumbnail)
    assert least < mask.mean() < most
    # What is left out is brighter than what is kept.
    assert thumbnail[mask].mean() < thumbnail[~mask].mean() - 20
