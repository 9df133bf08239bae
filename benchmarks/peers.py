"""Nuclei of tiles of 512 x 512 pixels by us and by other tools, from pixels to labels.

Peers have random weights, so their networks' answers mean nothing. Network and post-processing are therefore timed
apart, for ours as for theirs: the network on a tile, post-processing on the maps that a perfect network would give for
the tile's labels. First it is seen to give those nuclei back. Their packages are not nuclora's: `make bench-peers`.
"""

from __future__ import annotations

import functools
import statistics
import sys

import numpy as np

from common import Results, best_of, parser, seconds
from inference import SIDES, Make, mobile_sam, shipped, sides_of
from nuclora.data.synthetic import synthesize_tile
from nuclora.data.targets import dense_targets
from nuclora.data.tiles import Sample
from nuclora.inference.predictor import Maps as OurMaps
from nuclora.metrics import score
from peer_sides import PEERS, Image, Labels, Maps, Side

MODELS: dict[str, Make] = {"the shipped adapter": shipped, "MobileSAM": mobile_sam}
ORGANS = ("synthetic liver", "synthetic kidney", "synthetic spleen")
# Panoptic quality of post-processing's nuclei against those that its maps were made from.
_LEAST_PQ = 0.75
# The sides that ratios are given for: what every machine gives, and the fastest.
_RATIOS = ("PyTorch, float32", "OpenVINO, bf16")


def ours(model: str, side: str) -> Side:
    """Ours, one view."""
    predictor = MODELS[model](*SIDES[side])
    size = predictor.input_size

    def network(image: Image) -> Maps:
        return tuple(predictor.maps(image, 1))

    def ideal(labels: Labels) -> Maps:
        targets = dense_targets(labels)
        return targets, np.zeros_like(targets[0])

    def labels(maps: Maps) -> Labels:
        values, disagreement = maps
        shape = (2 * values.shape[1], 2 * values.shape[2])
        return predictor.decode_maps(OurMaps(values, disagreement), shape, predictor.settings).labels

    return Side(f"ours, {model}: {side}", f"{size} x {size} and 512 x 512", network, ideal, labels)


def peers(wanted: list[str]) -> list[Side]:
    """The sides of the peers that are installed; of the others it is said that they are not."""
    sides: list[Side] = []
    for name in wanted:
        try:
            sides += PEERS[name]()
        except ImportError as error:
            print(f"{name}: LEFT OUT, it is not installed here ({error})")
    return sides


def check(sides: list[Side], tiles: dict[str, Sample]) -> None:
    """See that post-processing gives the nuclei back, and that its maps are of the form that the network's are.

    Each side's first calls, which prepare what later ones use, are these and are not counted.
    """
    for organ, tile in tiles.items():
        for side in sides:
            ideal = side.ideal(tile.labels)
            found = side.labels(ideal)
            same = score(tile.labels, found)["pq"]
            count = len(np.unique(found)) - 1
            print(f"{side.name}, {organ}: {count} nuclei of {tile.labels.max()}, PQ {same:.3f}")
            if same < _LEAST_PQ:
                sys.exit(f"{side.name}: post-processing does not give the nuclei back, so its time says nothing")
    tile = tiles[ORGANS[0]]
    for side in sides:
        said, ideal = side.network(tile.image), side.ideal(tile.labels)
        if [plane.shape for plane in said] != [plane.shape for plane in ideal]:
            sys.exit(f"{side.name}: its network's maps have another form than post-processing was given")


def main() -> None:
    options = parser(__doc__ or "", __file__)
    options.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="Which to compare with.")
    given = options.parse_args()
    results = Results()
    theirs = peers(given.peers)
    if not theirs:
        sys.exit("none of the peers is installed here: make bench-peers installs them and runs this")
    # 8 bits need a package that would not go with the peers'.
    own = {
        (model, side): ours(model, side)
        for model, make in MODELS.items()
        for side, (_, precision) in sides_of(make).items()
        if precision != "int8"
    }
    sides = [*own.values(), *theirs]
    tiles = {organ: synthesize_tile(512, 1, organ) for organ in ORGANS}
    check(sides, tiles)

    image = tiles[ORGANS[0]].image
    networks = best_of([functools.partial(side.network, image) for side in sides], given.repeats)
    after = [
        best_of([functools.partial(side.labels, side.ideal(tile.labels)) for side in sides], given.repeats)
        for tile in tiles.values()
    ]
    heads = ["network", *(f"{tile.labels.max()} nuclei" for tile in tiles.values()), "all"]
    wide = max(len(side.name) for side in sides), max(len(side.sees) for side in sides)
    print(f"\n{'':{wide[0]}}  {'network sees':{wide[1]}}", *(f"{head:>11}" for head in heads))
    whole: dict[str, float] = {}
    for side, network, each in zip(sides, networks, zip(*after, strict=True), strict=True):
        whole[side.name] = network + statistics.mean(each)
        parts = (network, *each, whole[side.name])
        print(f"{side.name:{wide[0]}}  {side.sees:{wide[1]}}", *(f"{seconds(part):>11}" for part in parts))

    for (model, name), side in own.items():
        if name in _RATIOS:
            for peer in theirs:
                results.add(f"peers, {model}, 1 view, {name}, against {peer.name}", whole[side.name], whole[peer.name])
    results.finish(given.out)


if __name__ == "__main__":
    main()
