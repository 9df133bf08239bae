"""From the dense decoder's maps to separate nuclei: every pixel votes for its nucleus's middle.

Voting with offsets follows Neven et al., "Instance Segmentation by Jointly Optimizing Spatial Embeddings and
Clustering Bandwidth" (CVPR 2019), and Cheng et al., "Panoptic-DeepLab" (CVPR 2020). docs/results has the comparison
with thresholds and watersheds of the distance, of distance less contact and of the offsets' slopes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data.targets import MAPS, STRIDE
from nuclora.errors import NucloraError
from nuclora.recipe import DecodeSettings

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]

# Times smooth**-2: less than a fifth of what one ballot of full weight leaves at its own place. Where there is less,
# nobody voted.
_NO_VOTES = 0.03


def decode(maps: Floats, shape: tuple[int, int], settings: DecodeSettings, min_size: int) -> Labels:
    """Find the nuclei.

    1. A pixel is inside a nucleus where the foreground is over `settings.foreground`. It votes for the place that
       its offset leads to, with the foreground as weight.
    2. The votes are smoothed (Gaussian, `settings.smooth`). Each of their peaks is a nucleus, except where the votes
       on the way to a neighbour stay over `settings.valley` times the lower peak: those are one nucleus.
    3. A pixel belongs to the peak that is uphill from its vote.
    4. Nuclei whose distance is nowhere over `settings.core` are left out. Of the others the largest part stays
       (4-connected), its holes are filled, and it goes if it has fewer than `min_size` pixels.

    Args:
        maps: :data:`nuclora.data.targets.MAPS`, (5, ceil(H / 2), ceil(W / 2)).
        shape: Height and width of the image, in pixels.
        settings: Thresholds.
        min_size: Smallest nucleus in pixels.

    Returns:
        Labels (H, W), 1..n in reading order of their first pixels, 0 background, each one 4-connected part.

    Raises:
        NucloraError: Maps of a wrong shape, or with values that are not finite.
    """
    _require_maps(maps, shape)
    return _whole(_voted(maps, shape, settings, min_size), min_size)


def _voted(maps: Floats, shape: tuple[int, int], settings: DecodeSettings, min_size: int) -> Labels:
    """Steps 1 to 3, and nuclei without a core left out: labels (H, W) with gaps, of any number of parts."""
    planes = upsample(maps[[0, 2, 3, 4]], shape)
    inside = planes[0] > settings.foreground
    foreground, distance, offset_y, offset_x = planes[:, inside]
    # Planes of a slide's block are large, and decoding holds enough of them.
    del planes
    rows, columns = np.nonzero(inside)
    voted = _moved(rows, offset_y, shape[0]) * shape[1] + _moved(columns, offset_x, shape[1])
    ballots = np.bincount(voted, foreground, shape[0] * shape[1]).astype(np.float32)
    votes = ndimage.gaussian_filter(ballots.reshape(shape), settings.smooth, mode="constant")
    del ballots
    # The height of a peak that as many pixels agree on exactly as the smallest nucleus has.
    least = min_size / (2 * np.pi * settings.smooth**2)
    nucleus = _hills(votes, voted, _NO_VOTES / settings.smooth**2, least, settings.valley).ravel()[voted]

    core = np.zeros(nucleus.max(initial=0) + 1, dtype=np.float32)
    np.maximum.at(core, nucleus, distance)
    nucleus[core[nucleus] <= settings.core] = 0
    labels = np.zeros(shape, dtype=np.int32)
    labels[inside] = nucleus
    return labels


def upsample(maps: Floats, shape: tuple[int, int]) -> Floats:
    """Enlarge maps to the tile's resolution, bilinearly; the middle of a cell stays where it is.

    Args:
        maps: Planes (N, ceil(H / 2), ceil(W / 2)).
        shape: Height and width of the image, in pixels.

    Returns:
        Planes (N, H, W), float32.
    """
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[None]
    large = torch.nn.functional.interpolate(planes, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    # An odd side's last cell hangs over the image's edge.
    enlarged: Floats = large[0, :, : shape[0], : shape[1]].numpy()
    return enlarged


def _moved(position: Ints, offset: Floats, size: int) -> Ints:
    moved: Ints = np.clip(np.rint(position + offset), 0, size - 1).astype(np.int64)
    return moved


def _hills(votes: Floats, voted: Ints, floor: float, least: float, valley: float) -> Labels:
    """The ground that rises to each peak of the votes, 1..n; peaks with no deep valley between them share one.

    Exact where anybody voted; ground that nobody asks for may stay 0.
    """
    from skimage.segmentation import watershed

    ground, _ = ndimage.label(votes > floor)
    seeds, _ = ndimage.label(_peaks(votes, max(least, np.nextafter(np.float32(floor), np.float32(1)))))
    # A hair lower than the lowest pass that can unite two hills, whatever is rounded.
    parts = _upper_parts(votes, ground, voted, seeds, 0.99999 * valley * least)
    seed_places = np.flatnonzero(seeds)
    part_of, seed_of = parts.ravel()[seed_places], seeds.ravel()[seed_places]
    lowest = np.full(int(parts.max(initial=0)) + 1, len(seed_places) + 1, dtype=np.int32)
    highest = np.zeros_like(lowest)
    np.minimum.at(lowest, part_of, seed_of)
    np.maximum.at(highest, part_of, seed_of)
    # A part with one seed is its hill; only where there are more does the order of heights part them.
    hills: Labels = np.where(lowest == highest, highest, 0)[parts]
    boxes = ndimage.find_objects(parts)
    for part in np.flatnonzero(lowest < highest):
        box = boxes[part - 1]
        inside = parts[box] == part
        hills[box][inside] = watershed(-votes[box], seeds[box] * inside, mask=inside)[inside]
    return _join(hills, votes, valley)


def _peaks(votes: Floats, least: float) -> Mask:
    """Where votes are at least `least` and nothing in the 5 x 5 around is higher."""
    reach = 2
    padded = np.pad(votes, reach, constant_values=-np.inf)
    width = padded.shape[1]
    heights = padded.ravel()
    places = np.flatnonzero(heights >= least)
    steps = range(-reach, reach + 1)
    # Nearest first: most places are on a slope and fall out at once.
    for step in sorted((row * width + column for row in steps for column in steps), key=abs):
        places = places[heights[places] >= heights[places + step]]
    peaks = np.zeros(padded.shape, dtype=bool)
    peaks.ravel()[places] = True
    return peaks[reach:-reach, reach:-reach]


def _upper_parts(votes: Floats, ground: Labels, voted: Ints, seeds: Labels, pass_height: float) -> Labels:
    """Connected parts of the ground that decide: no lower than any vote, nor than a pass that could unite two hills.

    A flood from the peaks comes to lower ground later, so what it does there cannot change these parts, as long as
    each has a seed. Ground with a part that is only reached over lower ground is taken whole.
    """
    bottom = np.full(int(ground.max(initial=0)) + 1, pass_height, dtype=np.float32)
    np.minimum.at(bottom, ground.ravel()[voted], votes.ravel()[voted])
    bottom[0] = np.inf
    parts: Labels
    parts, count = ndimage.label(votes >= bottom[ground])
    seeded = np.zeros(count + 1, dtype=bool)
    seeded[parts[seeds > 0]] = True
    if seeded[1:].all():
        return parts
    bottom[ground[~seeded[parts] & (parts > 0)]] = 0
    parts, _ = ndimage.label(votes >= bottom[ground])
    return parts


def _join(hills: Labels, votes: Floats, valley: float) -> Labels:
    """Unite hills, those with the highest pass first, whose pass is over `valley` times the lower peak."""
    low, high, border = _neighbours(hills, votes)
    if not len(low):
        return hills
    count = int(hills.max(initial=0)) + 1
    peak = np.zeros(count, dtype=np.float32)
    places = np.flatnonzero(hills)
    np.maximum.at(peak, hills.ravel()[places], votes.ravel()[places])
    pairs, which = np.unique(low * count + high, return_inverse=True)
    passes = np.zeros(len(pairs), dtype=np.float32)
    np.maximum.at(passes, which, border)

    summit = np.arange(count)

    def find(hill: int) -> int:
        while summit[hill] != hill:
            summit[hill] = summit[summit[hill]]
            hill = summit[hill]
        return hill

    for index in np.argsort(-passes, kind="stable"):
        first, second = (find(hill) for hill in divmod(int(pairs[index]), count))
        if peak[first] < peak[second]:
            first, second = second, first
        if first != second and passes[index] > valley * peak[second]:
            summit[second] = first
    joined: Labels = np.array([find(hill) for hill in range(count)], dtype=np.int32)[hills]
    return joined


def _neighbours(labels: Labels, height: Floats) -> tuple[Ints, Ints, Floats]:
    """Of each two pixels side by side with different labels: the lower and higher label, and the lower height."""
    found = []
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = np.nonzero(labels[here] != labels[there])
        first, second = labels[here][differ], labels[there][differ]
        meet = (first > 0) & (second > 0)
        ids = np.sort(np.stack([first[meet], second[meet]]).astype(np.int64), axis=0)
        lower = np.minimum(height[here][differ], height[there][differ])
        found.append((ids[0], ids[1], lower[meet]))
    low, high, border = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return low, high, border


def _whole(labels: Labels, min_size: int) -> Labels:
    """Each label's largest part, without holes, if it is large enough; renumbered 1..n."""
    from skimage.measure import label

    parts = label(labels, background=0, connectivity=1).astype(np.int32)
    sizes = np.bincount(parts.ravel())
    label_of = np.zeros(len(sizes), dtype=np.int32)
    label_of[parts] = labels
    # By size, and on ties the first in reading order last: what is written last stays.
    order = np.lexsort((-np.arange(len(sizes)), sizes))
    largest = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.int64)
    largest[label_of[order]] = order
    kept = largest[label_of] == np.arange(len(sizes))
    kept[0] = False
    filled = fill_holes(np.where(kept, np.arange(len(sizes), dtype=np.int32), 0)[parts])
    sizes = np.bincount(filled.ravel(), minlength=len(sizes))
    kept &= sizes >= min_size
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    renumbered: Labels = numbers[filled]
    return renumbered


def fill_holes(labels: Labels) -> Labels:
    """Give background that lies inside one label alone to that label.

    Args:
        labels: int32 (H, W), 0 background.

    Returns:
        A filled copy.
    """
    holes, count = ndimage.label(labels == 0)
    closed = np.ones(count + 1, dtype=bool)
    closed[0] = False
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        closed[edge] = False
    places = np.flatnonzero(closed[holes])
    hole = holes.ravel()[places]
    lowest = np.full(count + 1, labels.max(initial=0) + 1)
    highest = np.zeros(count + 1, dtype=labels.dtype)
    # No place is at the image's edge, so each has four neighbours.
    for step in (1, -1, labels.shape[1], -labels.shape[1]):
        beside = labels.ravel()[places + step]
        edge = beside > 0
        np.minimum.at(lowest, hole[edge], beside[edge])
        np.maximum.at(highest, hole[edge], beside[edge])
    filled = labels.copy()
    filled.ravel()[places] = np.where(lowest == highest, highest, 0)[hole]
    return filled


def _require_maps(maps: Floats, shape: tuple[int, int]) -> None:
    expected = (len(MAPS), -(-shape[0] // STRIDE), -(-shape[1] // STRIDE))
    if maps.shape != expected:
        raise NucloraError(f"the maps of an image of {shape[0]} x {shape[1]} must be {expected}, not {maps.shape}")
    if not np.isfinite(maps).all():
        raise NucloraError("the maps have values that are not finite", mend="train with a lower learning rate")
