"""The eight views of a square image, and the way back for the maps predicted from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nuclora.data.targets import OFFSETS
from nuclora.errors import NucloraError

_OFFSET_Y, _OFFSET_X = 3, 4


class View(NamedTuple):
    """One of the symmetries of the square: quarter turns against the clock, then a mirror image or not."""

    turns: int
    mirrored: bool


# In an order in which the first 1, 2 and 4 are as different as can be: a half turn, then the mirror images.
_ORDER = (
    View(0, False),
    View(2, False),
    View(0, True),
    View(2, True),
    View(1, False),
    View(3, False),
    View(1, True),
    View(3, True),
)


def views(count: int) -> tuple[View, ...]:
    """The first `count` of the eight views; the first is the image as it is.

    Raises:
        NucloraError: There are not so many, or none.
    """
    if count not in range(1, len(_ORDER) + 1):
        raise NucloraError(f"{count} views", mend=f"choose 1 to {len(_ORDER)}")
    return _ORDER[:count]


def show(image: NDArray[Any], view: View) -> NDArray[Any]:
    """An image under a view.

    Args:
        image: (H, W) or (H, W, C), square.
        view: What to do with it.
    """
    turned = np.rot90(image, view.turns)
    return np.ascontiguousarray(turned[:, ::-1] if view.mirrored else turned)


def undo(maps: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Maps predicted from a view, as they lie on the image itself.

    Args:
        maps: (5, h, w), see :data:`nuclora.data.targets.MAPS`; the offsets are turned with the image.
        view: The view that they were predicted from.
    """
    maps = maps.copy()
    if view.mirrored:
        maps = maps[:, :, ::-1]
        maps[_OFFSET_X] *= -1
    maps = np.rot90(maps, -view.turns, axes=(1, 2))
    for _ in range(view.turns):
        # A quarter turn against the clock takes right to up: back, up is right and right is down.
        maps[[_OFFSET_Y, _OFFSET_X]] = np.stack([maps[_OFFSET_X], -maps[_OFFSET_Y]])
    return np.ascontiguousarray(maps)


def average(seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of several views' maps, and how far their votes are from it.

    Args:
        seen: (n, 5, h, w), as they lie on the image.

    Returns:
        (6, h, w): the mean maps, and last the mean distance in pixels of the votes from their mean.
    """
    mean = seen.mean(0)
    apart = np.hypot(*(seen[:, OFFSETS] - mean[OFFSETS]).swapaxes(0, 1)).mean(0)
    return np.concatenate([mean, apart[None]])
