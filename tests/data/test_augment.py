from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kornia.geometry.transform import rotate
from scipy import ndimage

from nuclora.data.augment import _read, _View, augment
from nuclora.data.tiles import Sample
from nuclora.recipe import AugmentSettings

OFF = AugmentSettings(rotation=0, flip=0, noise=0, noise_std=0, stain=0)
ALL = AugmentSettings(rotation=0.3, flip=0.5, noise=0.5, noise_std=0.05, stain=0.2)
EVERYTHING = ALL.model_copy(
    update={
        "rotation": math.pi,
        "crop": 64,
        "zoom": 1.35,
        "light": 0.3,
        "blur": 0.5,
        "jpeg": 0.5,
        "restain": 0.5,
        "exposure": 0.5,
    }
)
HAEMATOXYLIN = np.array((0.650, 0.704, 0.286)) / np.linalg.norm((0.650, 0.704, 0.286))
EOSIN = np.array((0.072, 0.990, 0.105)) / np.linalg.norm((0.072, 0.990, 0.105))


def only(**fields: float | None) -> AugmentSettings:
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


def coordinates(shape: tuple[int, int] = (150, 201)) -> Sample:
    """Pixels that tell where they were: red the column, green the row, label row * width + column + 1."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    image = np.stack((column, row, np.full(shape, 90)), -1).astype(np.uint8)
    labels = (row * shape[1] + column + 1).astype(np.int32)
    return Sample(image=image, labels=labels, ignore=(row // 16 + column // 16) % 5 == 0)


def grey(shape: tuple[int, int] = (128, 128), level: int = 128) -> Sample:
    return Sample(np.full((*shape, 3), level, np.uint8), np.zeros(shape, np.int32), np.zeros(shape, np.bool_))


def textured(shape: tuple[int, int] = (96, 96)) -> Sample:
    """Smooth random colours between about 60 and 200."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(*shape, 3)), (2, 2, 0))
    image = np.clip(130 + 130 * noise, 60, 200).astype(np.uint8)
    return Sample(image, np.zeros(shape, np.int32), np.zeros(shape, np.bool_))


def origins(sample: Sample, result: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column in the tile of each pixel of a changed `coordinates`, and where they are known."""
    row, column = np.divmod(result.labels - 1, sample.labels.shape[1])
    return row, column, result.labels > 0


def fitted(sample: Sample, result: Sample) -> tuple[float, float, np.ndarray]:
    """Enlargement, angle in radians, and the centre's row and column in the tile, fitted to a changed `coordinates`."""
    row, column, known = origins(sample, result)
    down, right = (axis - (axis.max() / 2) for axis in np.mgrid[: row.shape[0], : row.shape[1]].astype(float))
    design = np.stack((down[known], right[known], np.ones(known.sum())), 1)
    (a, b, middle_row), (c, d, middle_column) = (
        np.linalg.lstsq(design, part[known], rcond=None)[0] for part in (row, column)
    )
    assert a == pytest.approx(d, abs=0.01)
    assert b == pytest.approx(-c, abs=0.01)
    return 1 / math.hypot(a, b), math.atan2(b, a), np.array((middle_row, middle_column))


def equal(a: Sample, b: Sample) -> bool:
    return all(
        np.array_equal(getattr(a, part), getattr(b, part)) and getattr(a, part).dtype == getattr(b, part).dtype
        for part in ("image", "labels", "ignore")
    )


def test_all_zero_is_the_identity() -> None:
    sample = discs()
    results = [augment(sample, OFF, seed) for seed in range(5)]
    assert all(equal(result, sample) for result in results)
    for part in ("image", "labels", "ignore"):
        assert not np.shares_memory(getattr(results[0], part), getattr(sample, part))


@pytest.mark.parametrize("settings", [ALL, EVERYTHING])
def test_equal_seeds_make_equal_bytes_and_others_do_not(settings: AugmentSettings) -> None:
    sample = discs()
    for seed in range(4):
        assert equal(augment(sample, settings, seed), augment(sample, settings, seed))
    images = {augment(sample, settings, seed).image.tobytes() for seed in range(10)}
    assert len(images) == 10


def test_global_random_states_and_the_input_stay_as_they_are() -> None:
    sample = discs()
    copy = Sample(*(part.copy() for part in (sample.image, sample.labels, sample.ignore)))
    for part in (sample.image, sample.labels, sample.ignore):
        part.flags.writeable = False
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for seed in range(4):
        augment(sample, ALL, seed)
        augment(sample, EVERYTHING, seed)
        augment(sample, only(light=0.5, blur=1, jpeg=1), seed)
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
    noisy = [augment(grey(), only(noise=0.3, noise_std=0.04), seed).image.astype(float) - 128 for seed in range(200)]
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


def stained(haematoxylin: float, eosin: float) -> Sample:
    level = np.rint(255 * np.exp(-(haematoxylin * HAEMATOXYLIN + eosin * EOSIN))).astype(np.uint8)
    image = np.broadcast_to(level, (8, 8, 3)).copy()
    return Sample(image=image, labels=np.zeros((8, 8), np.int32), ignore=np.zeros((8, 8), bool))


def density(sample: Sample) -> np.ndarray:
    found: np.ndarray = -np.log(sample.image / 255).mean(axis=(0, 1))
    return found


def test_restaining_shows_eosin_in_any_colour_and_haematoxylin_near_its_own() -> None:
    eosins, haematoxylins = [], []
    for seed in range(300):
        both, haematoxylin, eosin, white = (
            density(augment(stained(*amounts), only(restain=1), seed))
            for amounts in ((0.6, 0.5), (0.6, 0), (0, 0.5), (0, 0))
        )
        assert white == pytest.approx(0, abs=1e-6)
        # Haematoxylin keeps its strength. Bytes are the tolerance.
        assert np.linalg.norm(haematoxylin) == pytest.approx(0.6, abs=0.01)
        assert both == pytest.approx(haematoxylin + eosin, abs=0.02)
        haematoxylins.append(haematoxylin / 0.6)
        eosins.append(eosin / 0.5)
    towards = np.array(haematoxylins) @ HAEMATOXYLIN
    assert 0.8 < towards.min() < 0.93
    # Each of red, green and blue is the strongest in a third of the dyes that take eosin's place.
    strongest = np.bincount(np.argmax(eosins, axis=1), minlength=3) / 300
    assert strongest == pytest.approx(1 / 3, abs=0.1)
    assert np.min(eosins) >= -0.01
    strengths = np.linalg.norm(eosins, axis=1)
    assert strengths.min() < 0.05
    assert strengths.max() == pytest.approx(1.5, abs=0.05)
    assert strengths.mean() == pytest.approx(0.75, abs=0.08)


def test_exposure_lights_up_by_one_factor_at_most_to_white_and_as_often_as_asked() -> None:
    sample = textured()
    dim = Sample((sample.image * (0.5, 0.4, 0.45)).astype(np.uint8), sample.labels, sample.ignore)
    # The 98th percentile of the pixels' greatest channels becomes white at most.
    most = 255 / np.quantile(dim.image.max(axis=2), 0.98)
    factors = []
    for seed in range(300):
        lit = augment(dim, only(exposure=0.6), seed).image.astype(float)
        below = (lit < 254).all(axis=2) & (dim.image > 20).all(axis=2)
        ratios = lit[below] / dim.image[below]
        assert np.ptp(np.median(ratios, axis=0)) < 0.02
        factors.append(np.median(ratios))
    found = np.array(factors)
    assert (found > 1.001).mean() == pytest.approx(0.6, abs=0.08)
    assert found.max() == pytest.approx(most, rel=0.05)
    assert found.min() == 1
    # A tile that has white in it stays as it is.
    dim.image[:20] = 255
    assert all(equal(augment(dim, only(exposure=1), seed), dim) for seed in range(5))


def test_restaining_is_as_frequent_as_asked_and_leaves_the_jitters_draws() -> None:
    sample = stained(0.6, 0.5)
    changed = 0
    for seed in range(400):
        result = augment(sample, only(restain=0.3), seed)
        changed += not equal(result, sample)
        if equal(result, sample):
            jittered = only(stain=0.3, light=0.2)
            assert equal(
                augment(sample, jittered, seed), augment(sample, jittered.model_copy(update={"restain": 0.3}), seed)
            )
    assert changed / 400 == pytest.approx(0.3, abs=0.06)


def test_switching_one_change_off_leaves_the_others_draws() -> None:
    sample = discs()
    for seed in range(4):
        with_noise, without = augment(sample, ALL, seed), augment(sample, only(rotation=0.3, flip=0.5), seed)
        assert np.array_equal(with_noise.labels, without.labels)


@pytest.mark.parametrize("seed", range(6))
def test_angle_flips_and_noise_are_those_of_the_first_version(seed: int) -> None:
    # What a run was trained with must not change under it: its draws, written out, and kornia's rotation.
    sample = discs()
    generator = torch.Generator().manual_seed(seed)
    angle, flip_x, flip_y, chance = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    torch.rand(2, 2, generator=generator)
    noise_seed = int(torch.randint(2**62, (), generator=generator))
    degrees = torch.tensor([math.degrees((2 * angle - 1) * 0.3)], dtype=torch.float64)
    image, labels = torch.tensor(sample.image).permute(2, 0, 1).double(), torch.tensor(sample.labels).double()[None]
    for dimension, flip in ((-1, flip_x), (-2, flip_y)):
        if flip < 0.5:
            image, labels = image.flip(dimension), labels.flip(dimension)
    image = rotate(image, degrees, mode="bilinear", padding_mode="reflection", align_corners=True)
    labels = rotate(labels, degrees, mode="nearest", padding_mode="zeros", align_corners=True)[0]
    result = augment(sample, only(rotation=0.3, flip=0.5), seed)
    assert np.array_equal(result.labels, labels.int().numpy())
    assert np.abs(result.image - image.permute(1, 2, 0).numpy()).max() <= 0.51

    noise = torch.randn((3, 40, 50), generator=torch.Generator().manual_seed(noise_seed)).permute(1, 2, 0).numpy()
    expected = np.rint(128 + 255 * 0.05 * noise) if chance < 0.5 else np.full((40, 50, 3), 128)
    assert np.array_equal(augment(grey((40, 50)), only(noise=0.5, noise_std=0.05), seed).image, expected)


@pytest.mark.parametrize("shape", [(150, 201), (65, 64), (200, 47)])
@pytest.mark.parametrize(
    "fields",
    [
        {"crop": 64},
        {"crop": 41, "zoom": 1.5},
        {"zoom": 2},
        {"crop": 64, "rotation": math.pi, "zoom": 1.35, "flip": 0.5},
        {"rotation": 2, "zoom": 1.35, "flip": 0.5},
    ],
)
def test_image_labels_and_ignore_stay_together(shape: tuple[int, int], fields: dict[str, float]) -> None:
    sample = coordinates(shape)
    for seed in range(8):
        result = augment(sample, only(**fields), seed)
        side = fields.get("crop")
        assert result.labels.shape == ((side, side) if side else shape)
        assert result.image.shape == (*result.labels.shape, 3)
        row, column, known = origins(sample, result)
        assert known.any()
        # The nearest pixel is half a pixel off at most, the image's rounding another half.
        assert np.abs(result.image[..., 0].astype(int) - column)[known].max() <= 1
        assert np.abs(result.image[..., 1].astype(int) - row)[known].max() <= 1
        assert np.array_equal(result.ignore[known], sample.ignore[row[known], column[known]])
        assert result.ignore[~known].all()
        # A mirror makes no colour of its own.
        assert result.image[..., 0].max() < shape[1]
        assert result.image[..., 1].max() < shape[0]


def test_a_crop_alone_moves_bytes_and_lies_anywhere_with_equal_chance() -> None:
    sample = coordinates((50, 60))
    corners = []
    for seed in range(600):
        result = augment(sample, only(crop=40), seed)
        top, left = np.divmod(int(result.labels[0, 0]) - 1, 60)
        window = slice(top, top + 40), slice(left, left + 40)
        assert equal(result, Sample(sample.image[window], sample.labels[window], sample.ignore[window]))
        corners.append((top, left))
    for places, count in zip(np.transpose(corners), (11, 21), strict=True):
        seen = np.bincount(places, minlength=count)
        assert seen.shape == (count,)
        assert np.abs(seen - 600 / count).max() < 4.5 * math.sqrt(600 / count)
    assert abs(np.corrcoef(np.transpose(corners))[0, 1]) < 0.15


def test_a_crop_of_the_tiles_side_is_the_tile() -> None:
    sample = coordinates((64, 64))
    assert all(equal(augment(sample, only(crop=64), seed), sample) for seed in range(10))


@pytest.mark.parametrize("shape", [(40, 64), (33, 64), (31, 20), (1, 3)])
def test_a_crop_larger_than_the_tile_has_it_in_the_middle(shape: tuple[int, int]) -> None:
    sample = coordinates(shape)
    margins = [((64 - side + 1) // 2, (64 - side) // 2) for side in shape]
    expected = Sample(
        image=np.pad(sample.image, (*margins, (0, 0)), mode="reflect"),
        labels=np.pad(sample.labels, margins),
        ignore=np.pad(sample.ignore, margins, constant_values=True),
    )
    assert all(equal(augment(sample, only(crop=64), seed), expected) for seed in range(4))


def test_middle_of_a_turned_crop_lies_anywhere_inside_the_tile() -> None:
    sample = coordinates()
    settings = AugmentSettings(**{**OFF.model_dump(), "rotation": math.pi, "zoom": 1.4, "crop": 64})
    centres = []
    seen = np.zeros(sample.labels.size + 1, dtype=bool)
    for seed in range(60):
        result = augment(sample, settings, seed)
        zoom, _, centre = fitted(sample, result)
        assert result.ignore[result.labels == 0].all()
        extent = 0.75 * 64 / zoom
        centres.append((centre + 0.5 - extent / 2) / (np.array((150, 201)) - extent))
        seen[result.labels] = True
    places = np.array(centres)
    assert places.min() > -0.02
    assert places.max() < 1.02
    assert (places.min(0) < 0.15).all()
    assert (places.max(0) > 0.85).all()
    # The tile's edges are seen nearly as often as its middle.
    edge = np.ones(sample.labels.shape, dtype=bool)
    edge[4:-4, 4:-4] = False
    assert seen[sample.labels[edge]].mean() > 0.5


def test_zoom_enlarges_by_a_log_uniform_factor_about_the_centre() -> None:
    sample = coordinates()
    fits = [fitted(sample, augment(sample, only(zoom=2), seed)) for seed in range(60)]
    powers = np.log2([zoom for zoom, _, _ in fits])
    assert np.abs(powers).max() <= 1.01
    assert np.quantile(powers, (0.25, 0.5, 0.75)) == pytest.approx((-0.5, 0, 0.5), abs=0.3)
    assert max(abs(angle) for _, angle, _ in fits) < 0.001
    assert np.abs([centre - (74.5, 100) for _, _, centre in fits]).max() < 0.1
    # As seen: a disc grows by the square of the factor.
    for seed in range(6):
        area = (augment(discs(), only(zoom=1.5), seed).labels == 1).sum() / (discs().labels == 1).sum()
        zoom = fitted(sample, augment(sample, only(zoom=1.5), seed))[0]
        assert area == pytest.approx(zoom**2, rel=0.03)


def test_zoom_and_crop_leave_the_angle_and_rotation_leaves_the_zoom() -> None:
    sample = coordinates()
    for seed in range(5):
        angle = fitted(sample, augment(sample, only(rotation=0.3), seed))[1]
        zoom = fitted(sample, augment(sample, only(zoom=1.3), seed))[0]
        both = fitted(sample, augment(sample, only(rotation=0.3, zoom=1.3, crop=80), seed))
        assert both[1] == pytest.approx(angle, abs=0.003)
        assert both[0] == pytest.approx(zoom, rel=0.003)


@pytest.mark.parametrize("elastic", [0.0, 4.0])
@pytest.mark.parametrize("shape", [(90, 120), (301, 40), (17, 23)])
def test_reading_equals_scipy_and_mirrors_outside(shape: tuple[int, int], elastic: float) -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    labels = rng.integers(0, 2**31, shape, np.int32, endpoint=False)
    ignore = rng.random(shape) < 0.5
    for _ in range(20):
        centre = tuple(rng.uniform(0, side - 1) for side in shape)
        view = _View((50, 61), centre, rng.uniform(-4, 4), rng.uniform(0.3, 2), elastic, int(rng.integers(99)))
        values, moved, ignored = _read((image, labels, ignore), view)
        points = np.stack([part.numpy() for part in view.points()])
        for channel in range(3):
            expected = ndimage.map_coordinates(image[..., channel].astype(float), points, order=1, mode="mirror")
            assert np.abs(values[channel].numpy() - expected).max() < 0.05
        row, column = np.rint(points).astype(int)
        inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        assert np.array_equal(moved[inside], labels[row[inside], column[inside]])
        assert np.array_equal(ignored[inside], ignore[row[inside], column[inside]])
        assert not moved[~inside].any()
        assert ignored[~inside].all()


def test_bending_shifts_smoothly_by_as_much_as_asked_and_folds_nothing() -> None:
    sample = coordinates()
    shifts, steps = [], []
    for seed in range(30):
        row, column, known = origins(sample, augment(sample, only(elastic=3), seed))
        own_row, own_column = np.indices(row.shape)
        for moved, own, axis in ((row, own_row, 0), (column, own_column, 1)):
            shifts.append((moved - own)[known])
            both = known & np.roll(known, 1, axis)
            steps.append(np.diff(moved, axis=axis)[np.delete(both, 0, axis)])
    every = np.concatenate(shifts)
    # Between its knots a smooth field shifts a little less than at them.
    assert 2 < every.std() < 3.2
    assert abs(every.mean()) < 0.5
    # Neighbours stay neighbours, in their order but for the rounding to whole pixels.
    every = np.concatenate(steps)
    assert np.quantile(every, 0.001) >= 0
    assert every.max() <= 3


def test_bending_keeps_every_nucleus_in_one_part() -> None:
    for seed in range(10):
        result = augment(discs(), only(elastic=3), seed)
        for name in np.unique(result.labels[result.labels > 0]):
            assert ndimage.label(result.labels == name, np.ones((3, 3)))[1] == 1


def test_a_tile_of_one_row_can_be_bent() -> None:
    row = Sample(np.full((1, 64, 3), 90, np.uint8), np.ones((1, 64), np.int32), np.zeros((1, 64), bool))
    for seed in range(40):
        result = augment(row, only(elastic=6), seed)
        assert result.image.shape == (1, 64, 3)
        assert (result.image == 90).all()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("side", [64, 65])
def test_quarter_turns_are_exact(turns: int, side: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    labels = rng.integers(0, 2**31, (side, side), np.int32, endpoint=False)
    ignore = rng.random((side, side)) < 0.5
    middle = (side - 1) / 2
    values, *planes = _read((image, labels, ignore), _View((side, side), (middle, middle), turns * math.pi / 2, 1))
    moved = Sample(values.round().byte().permute(1, 2, 0).numpy(), *planes)
    assert equal(moved, Sample(*(np.rot90(part, turns) for part in (image, labels, ignore))))


def test_colour_changes_leave_labels_and_geometry() -> None:
    sample = discs()
    plain = only(rotation=1, flip=0.5, zoom=1.3, crop=90)
    for change in (
        {"stain": 0.3},
        {"restain": 1},
        {"exposure": 1},
        {"light": 0.3},
        {"blur": 1},
        {"jpeg": 1},
        {"noise": 1, "noise_std": 0.05},
    ):
        for seed in range(4):
            before = augment(sample, plain, seed)
            after = augment(sample, plain.model_copy(update=change), seed)
            assert np.array_equal(after.labels, before.labels)
            assert np.array_equal(after.ignore, before.ignore)
            assert not np.array_equal(after.image, before.image)


def test_later_changes_leave_the_draws_of_earlier_ones() -> None:
    # Of a grey image blur and JPEG leave everything, so what differs would be the other changes' numbers.
    changes = only(stain=0.3, light=0.2, noise=0.5, noise_std=0.03)
    for seed in range(6):
        plain = augment(grey(), changes, seed).image.astype(int)
        more = augment(grey(), changes.model_copy(update={"blur": 1, "zoom": 1.3, "rotation": 1, "flip": 0.5}), seed)
        assert np.abs(more.image - plain).max() <= 1
        compressed = augment(grey(), changes.model_copy(update={"jpeg": 1}), seed)
        # JPEG keeps a flat colour to some levels, and noise comes after it.
        assert np.abs(compressed.image - plain).max() <= 12
        assert np.std(compressed.image - plain, axis=(0, 1)).max() < 0.6


def test_light_is_contrast_about_the_mean_and_a_shift() -> None:
    sample = textured()
    before = sample.image.astype(float)
    found = []
    for seed in range(80):
        after = augment(sample, only(light=0.2), seed).image.astype(float)
        inner = (after > 0) & (after < 255)
        factor, offset = np.polyfit(before[inner], after[inner], 1)
        assert np.abs(after[inner] - factor * before[inner] - offset).max() < 1
        found.append((factor - 1, factor * before.mean() + offset - before.mean()))
    factors, shifts = np.transpose(found)
    assert np.abs(factors).max() <= 0.202
    assert np.ptp(factors) > 0.3
    assert np.abs(shifts).max() <= 0.2 * 0.3 * 255 + 0.2
    assert np.ptp(shifts) > 0.2 * 0.3 * 255 * 1.5
    assert abs(np.corrcoef(factors, shifts)[0, 1]) < 0.4


def test_blur_is_gaussian_and_as_frequent_as_asked() -> None:
    point = grey((41, 41), 0)
    point.image[20, 20] = 255
    y, x = np.mgrid[-20:21, -20:21]
    sigmas = []
    for seed in range(100):
        image = augment(point, only(blur=0.4), seed).image[..., 0].astype(float)
        if image[20, 20] == 255:
            continue
        # The middle's share tells the width: its neighbours' ratio to it is exp(-1 / (2 sigma^2)).
        sigma = math.sqrt(-1 / (2 * math.log(image[20, 21] / image[20, 20]))) if image[20, 21] else 0.3
        gauss = np.exp(-(x**2 + y**2) / (2 * sigma**2))
        assert np.abs(image - 255 * gauss / gauss.sum()).max() < 6
        sigmas.append(sigma)
    assert 25 <= len(sigmas) <= 55
    assert min(sigmas) == pytest.approx(0.35, abs=0.06)
    assert max(sigmas) == pytest.approx(1.17, abs=0.06)
    spreads = []
    for seed in range(5):
        image = augment(textured(), only(blur=1), seed).image
        assert abs(image.mean() - textured().image.mean()) < 0.3
        spreads.append(image.std() / textured().image.std())
    assert max(spreads) <= 1.001
    assert 0.7 < min(spreads) < 0.97


def test_jpeg_changes_little_and_as_often_as_asked() -> None:
    sample = textured()
    changes = [augment(sample, only(jpeg=0.3), seed).image.astype(float) - sample.image for seed in range(100)]
    hit = [np.abs(change).mean() for change in changes if change.any()]
    assert 18 <= len(hit) <= 42
    assert max(hit) < 8
    assert max(hit) > 2 * min(hit)
    assert max(abs(change.mean()) for change in changes) < 1


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 90), (128, 128)])
def test_grey_black_white_and_odd_tiles_take_everything(level: int, shape: tuple[int, int]) -> None:
    for crop in (None, 33):
        for seed in range(4):
            sample = grey(shape, level)
            everything = EVERYTHING.model_copy(update={"crop": crop, "blur": 1, "jpeg": 1, "noise": 0})
            result = augment(sample, everything, seed)
            assert result.image.shape == ((*shape, 3) if crop is None else (33, 33, 3))
            assert (result.image.dtype, result.labels.dtype, result.ignore.dtype) == (np.uint8, np.int32, np.bool_)
            assert all(part.flags.c_contiguous for part in (result.image, result.labels, result.ignore))
            # A flat image stays flat.
            assert np.ptp(result.image, axis=(0, 1)).max() <= 2
