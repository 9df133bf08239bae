"""Training targets: against a mask of the whole tile for each nucleus, and how the time grows."""

from __future__ import annotations

import functools

import numpy as np
from scipy import ndimage
from skimage.measure import block_reduce, label

from common import Results, best_of
from label_maps import Floats, Labels, discs, tile_parser, tiles
from nuclora.data.targets import STRIDE, dense_targets


def plain_targets(labels: Labels) -> Floats:
    """The maps of `nuclora.data.targets.dense_targets`, each nucleus a mask of the whole tile; sides must be even."""
    planes = np.zeros((5, *labels.shape), np.float32)
    planes[0] = labels > 0
    for identity in np.unique(labels):
        if identity == 0:
            continue
        reached = ndimage.binary_dilation(labels == identity, np.ones((5, 5), bool))
        planes[1] += reached
        parts = label(labels == identity, connectivity=2)
        for part in range(1, parts.max() + 1):
            nucleus = parts == part
            # The tile's edge counts as the nucleus's edge.
            depth = ndimage.distance_transform_edt(np.pad(nucleus, 1))[1:-1, 1:-1]
            planes[2][nucleus] = depth[nucleus] / depth.max()
            for plane, positions in zip(planes[3:], np.nonzero(nucleus), strict=True):
                plane[nucleus] = positions.mean() - positions
    planes[1] = planes[1] > 1
    cells = (STRIDE, STRIDE)
    pooled = np.stack(
        [block_reduce(plane, cells, np.max if index == 1 else np.mean) for index, plane in enumerate(planes)]
    )
    pooled[3:] /= np.maximum(pooled[0], 1 / STRIDE**2)
    return pooled.astype(np.float32)


def main() -> None:
    given = tile_parser(__doc__ or "", __file__).parse_args()
    results = Results()
    for name, labels in tiles(given.data, count=5):
        results.compare(
            f"targets, 512 x 512, {name}, {labels.max()} nuclei",
            functools.partial(dense_targets, labels),
            functools.partial(plain_targets, labels),
            functools.partial(np.allclose, rtol=0, atol=1e-5),
            given.repeats,
        )
    for side, count in ((512, 200), (1024, 800), (2048, 3_200), (2048, 100), (2048, 1_000), (2048, 10_000)):
        labels = discs(side, count, seed=1)
        (ours_s,) = best_of([functools.partial(dense_targets, labels)], given.repeats)
        results.add(f"targets, {side} x {side}, {count:,} nuclei", ours_s)
    results.finish(given.out)


if __name__ == "__main__":
    main()
