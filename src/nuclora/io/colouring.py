"""Numbering colours for the nuclei of a label map so that neighbours differ."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray


def neighbour_pairs(labels: NDArray[np.integer], distance: int = 3) -> NDArray[np.int64]:
    """Pairs of instances that come within some pixels of each other.

    Args:
        labels: Integer labels (H, W), 0 background.
        distance: Largest Euclidean distance between two of their pixel centres.

    Returns:
        Pairs of ids (N, 2), the smaller id first, in ascending order.
    """
    # A pair as one number: arrays of rows sort many times slower.
    base = int(labels.max(initial=0)) + 1
    pairs = [np.empty(0, dtype=np.int64)]
    furthest = min(distance, labels.shape[1] - 1)
    for down in range(min(distance, labels.shape[0] - 1) + 1):
        for right in range(-furthest, furthest + 1):
            if (down, right) <= (0, 0) or down**2 + right**2 > distance**2:
                continue
            upper = labels[: labels.shape[0] - down, max(0, -right) : labels.shape[1] - max(0, right)]
            lower = labels[down:, max(0, right) : labels.shape[1] - max(0, -right)]
            touching = (upper != lower) & (upper > 0) & (lower > 0)
            first, second = upper[touching].astype(np.int64), lower[touching].astype(np.int64)
            pairs.append(np.unique(np.minimum(first, second) * base + np.maximum(first, second)))
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), base), axis=1)


def neighbour_colours(labels: NDArray[np.integer], colours: int = 6, distance: int = 3) -> dict[int, int]:
    """Number a colour for each instance so that no two neighbours share one.

    Greedy colouring in smallest-last order (Matula & Beck, J. ACM 30 (1983) 417-427), which takes at most six
    colours where the neighbourhood is planar; among the colours that are free it takes the one used least.

    Args:
        labels: Integer labels (H, W), 0 background.
        colours: How many there are; more are numbered only where neighbours would share one.
        distance: See :func:`neighbour_pairs`.

    Returns:
        Colour number from 0 for each id.
    """
    neighbours: defaultdict[int, set[int]] = defaultdict(set)
    for first, second in neighbour_pairs(labels, distance).tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    ids = [int(label) for label in np.unique(labels) if label > 0]
    chosen: dict[int, int] = {}
    used: Counter[int] = Counter()
    for label in reversed(_smallest_last(ids, neighbours)):
        taken = {chosen[other] for other in neighbours[label] if other in chosen}
        free = [colour for colour in range(colours) if colour not in taken]
        if free:
            colour = min(free, key=lambda number: (used[number], number))
        else:
            colour = next(number for number in range(len(ids)) if number not in taken)
        chosen[label] = colour
        used[colour] += 1
    return chosen


def _smallest_last(ids: list[int], neighbours: dict[int, set[int]]) -> list[int]:
    """Ids in the order in which they have the fewest neighbours among those that are left."""
    degrees = {label: len(neighbours[label]) for label in ids}
    waiting = [(degree, label) for label, degree in degrees.items()]
    heapq.heapify(waiting)
    order: list[int] = []
    while waiting:
        degree, label = heapq.heappop(waiting)
        if degrees.get(label) != degree:
            # Stale: it was entered again with fewer neighbours, or is in the order already.
            continue
        order.append(label)
        del degrees[label]
        for other in neighbours[label]:
            if other in degrees:
                degrees[other] -= 1
                heapq.heappush(waiting, (degrees[other], other))
    return order
