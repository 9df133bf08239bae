from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from nuclora.data.augment import augment
from nuclora.data.tiles import Sample
from nuclora.recipe import AugmentSettings

OFF = AugmentSettings(rotation=0, flip=0, noise=0, noise_std=0, stain=0)
ALL = AugmentSettings(rotation=0.3, flip=0.5, noise=0.5, noise_std=0.05, stain=0.2)
HAEMATOXYLIN = np.array((0.650, 0.704, 0.286)) / np.linalg.norm((0.650, 0.704, 0.286))
EOSIN = np.array((0.072, 0.990, 0.105)) / np.linalg.norm((0.072, 0.990, 0.105))


def only(**fields: float) -> AugmentSettings:
    return AugmentSettings(**{**OFF.model_dump(), **fields})


def discs(shape: tuple[int, int] = (160, 200)) -> Sample:
    """Four discs, each in its own colour; the third is ignored."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    centres = {1: (80, 100), 7: (50, 60), 9: (110, 140), 2**31 - 1: (60, 135)}
    colours = {0: (250, 240, 245), 1: (60, 30, 90), 7: (100, 60, 130), 9: (150, 20, 60), 2**31 - 1: (30, 90, 30)}
    for label, (row, column) in centres.items():
        labels[np.hypot(y - row, x - column) < 16] = label
    image = np.zeros((*shape, 3), np.uint8)
    for label, colour in colours.items():
        image[labels == label] = colour
    return Sample(image=image, labels=labels, ignore=labels == 9)


def equal(a: Sample, b: Sample) -> bool:
    return all(
        np.array_equal(getattr(a, part), getattr(b, part)) and getattr(a, part).dtype == getattr(b, part).dtype
        for part in ("image", "labels", "ignore")
    )


def test_all_zero_is_the_identity() -> None:
    sample = discs()
    assert all(equal(augment(sample, OFF, seed), sample) for seed in range(5))


def test_equal_seeds_make_equal_bytes_and_others_do_not() -> None:
    sample = discs()
    for seed in range(4):
        assert equal(augment(sample, ALL, seed), augment(sample, ALL, seed))
    images = {augment(sample, ALL, seed).image.tobytes() for seed in range(10)}
    assert len(images) == 10


def test_global_random_states_and_the_input_stay_as_they_are() -> None:
    sample = discs()
    copy = Sample(*(part.copy() for part in (sample.image, sample.labels, sample.ignore)))
    for part in (sample.image, sample.labels, sample.ignore):
        part.flags.writeable = False
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    augment(sample, ALL, 3)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert equal(sample, copy)


def test_types_and_shapes() -> None:
    result = augment(discs((90, 141)), ALL, 1)
    assert (result.image.dtype, result.labels.dtype, result.ignore.dtype) == (np.uint8, np.int32, np.bool_)
    assert (result.image.shape, result.labels.shape, result.ignore.shape) == ((90, 141, 3), (90, 141), (90, 141))
    assert result.image.flags.c_contiguous
    assert result.labels.flags.c_contiguous


def test_flips_move_image_labels_and_ignore_alike() -> None:
    sample = discs()
    seen = set()
    for seed in range(40):
        result = augment(sample, only(flip=0.5), seed)
        fits = [
            axes
            for axes in ((), (0,), (1,), (0, 1))
            if equal(result, Sample(*(np.flip(p, axes) for p in (sample.image, sample.labels, sample.ignore))))
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert seen == {(), (0,), (1,), (0, 1)}
    assert np.array_equal(augment(sample, only(flip=1), 0).labels, sample.labels[::-1, ::-1])


def turned_by(sample: Sample, result: Sample, label: int) -> float:
    """Angle in degrees by which a label's centre has moved about the tile's centre, as scipy counts it."""
    middle = (np.array(sample.labels.shape) - 1) / 2
    before, after = (np.argwhere(part.labels == label).mean(0) - middle for part in (sample, result))
    return math.degrees(math.atan2(before[0], before[1]) - math.atan2(after[0], after[1]))


@pytest.mark.parametrize("seed", range(6))
def test_rotation_equals_scipy(seed: int) -> None:
    sample = discs()
    result = augment(sample, only(rotation=0.3), seed)
    angles = [turned_by(sample, result, label) for label in (7, 9, 2**31 - 1)]
    assert np.ptp(angles) < 0.8
    assert max(map(abs, angles)) <= math.degrees(0.3) + 0.5
    angle = float(np.mean(angles))
    labels = ndimage.rotate(sample.labels, angle, reshape=False, order=0, mode="constant")
    image = ndimage.rotate(sample.image.astype(float), angle, reshape=False, order=1, mode="mirror")
    assert (labels == result.labels).mean() > 0.99
    assert np.abs(image - result.image).mean() < 1.5


def test_rotation_keeps_ids_areas_and_the_image_under_them() -> None:
    sample = discs()
    angles = []
    for seed in range(12):
        result = augment(sample, only(rotation=0.3), seed)
        angles.append(turned_by(sample, result, 7))
        assert set(np.unique(result.labels)) == set(np.unique(sample.labels))
        for label in (1, 7, 9, 2**31 - 1):
            area = (sample.labels == label).sum()
            assert (result.labels == label).sum() == pytest.approx(area, rel=0.03)
            core = ndimage.binary_erosion(result.labels == label, iterations=2)
            assert (result.image[core] == sample.image[sample.labels == label][0]).all()
        assert result.ignore[result.labels == 9].all()
    assert min(angles) < -8
    assert max(angles) > 8


def test_pixels_from_outside_are_mirrored_ignored_and_unlabelled() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 200, (64, 64, 3), np.uint8)
    sample = Sample(image=image, labels=np.full((64, 64), 5, np.int32), ignore=np.zeros((64, 64), bool))
    shares = []
    for seed in range(8):
        result = augment(sample, only(rotation=0.5), seed)
        assert np.array_equal(result.ignore, result.labels == 0)
        assert set(np.unique(result.labels)) <= {0, 5}
        assert result.image.min() >= 100
        assert not result.ignore[20:44, 20:44].any()
        shares.append(result.ignore.mean())
    assert max(shares) > 0.03


def test_noise_has_the_asked_strength_and_frequency() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    sample = Sample(image=grey, labels=np.zeros((128, 128), np.int32), ignore=np.zeros((128, 128), bool))
    noisy = [augment(sample, only(noise=0.3, noise_std=0.04), seed).image.astype(float) - 128 for seed in range(200)]
    hit = [change for change in noisy if change.any()]
    assert 40 <= len(hit) <= 80
    assert np.std(hit) == pytest.approx(0.04 * 255, rel=0.01)
    assert abs(np.mean(hit)) < 0.05


def test_stain_jitter_is_affine_in_each_concentration() -> None:
    amounts = np.linspace(0.3, 1.0, 64)
    haematoxylin, eosin = np.meshgrid(amounts, amounts, indexing="ij")
    density = haematoxylin[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN
    image = np.rint(255 * np.exp(-density)).astype(np.uint8)
    sample = Sample(image=image, labels=np.zeros((64, 64), np.int32), ignore=np.zeros((64, 64), bool))
    found = []
    for seed in range(8):
        changed = -np.log(augment(sample, only(stain=0.2), seed).image / 255).reshape(-1, 3)
        unmixed = np.linalg.lstsq(np.stack((HAEMATOXYLIN, EOSIN)).T, changed.T, rcond=None)[0]
        design = np.stack((haematoxylin.ravel(), eosin.ravel(), np.ones(64 * 64)), axis=1)
        (own_h, cross_h, offset_h), (cross_e, own_e, offset_e) = (
            np.linalg.lstsq(design, part, rcond=None)[0] for part in unmixed
        )
        assert abs(cross_h) < 0.02
        assert abs(cross_e) < 0.02
        for factor, offset in ((own_h, offset_h), (own_e, offset_e)):
            assert 0.78 < factor < 1.22
            assert -0.22 < offset < 0.22
        found.append((own_h, own_e, offset_h, offset_e))
    # Each of the four is drawn by itself.
    assert (np.std(found, axis=0) > 0.04).all()
    assert np.abs(np.corrcoef(np.transpose(found)) - np.eye(4)).max() < 0.95


def test_switching_one_change_off_leaves_the_others_draws() -> None:
    sample = discs()
    for seed in range(4):
        with_noise, without = augment(sample, ALL, seed), augment(sample, only(rotation=0.3, flip=0.5), seed)
        assert np.array_equal(with_noise.labels, without.labels)
