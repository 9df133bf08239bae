"""One source of randomness: the seed and the names of what it is for."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from a seed and names, such as an epoch and a tile.

    Nothing else carries random state, so a resumed run draws what an unbroken one would have drawn.
    """
    key = "\0".join(str(part) for part in (seed, *names)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) >> 1
