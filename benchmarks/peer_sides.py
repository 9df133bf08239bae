"""The peers of `peers.py`: each in its published form and configuration, with random weights.

A peer is a function that imports its package, so that one may be missing, and returns its sides. Beside the network
and the post-processing, which are the package's own, a side has the maps that a perfect network would give for
labels: what the peer trains its network on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data.targets import dense_targets

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]
Labels = NDArray[np.int32]
Maps = tuple[Floats, ...]


@dataclass(frozen=True)
class Side:
    """One way to the nuclei of a tile.

    Attributes:
        name: For the table.
        sees: What the network gets of a tile of 512 x 512 pixels at .25 microns each.
        network: From pixels to maps, the input's preparation included.
        ideal: What a perfect network would say of a tile with these labels.
        labels: From maps to labels of the tile.
    """

    name: str
    sees: str
    network: Callable[[Image], Maps]
    ideal: Callable[[Labels], Maps]
    labels: Callable[[Maps], Labels]


def stardist() -> list[Side]:
    """StarDist as `2D_versatile_he` is configured: on pixels of .25 microns, and of .5 as QuPath's users run it."""
    import tensorflow as tf
    from csbdeep.utils import normalize
    from stardist import edt_prob, polygons_to_label, star_dist
    from stardist.models import Config2D, StarDist2D
    from stardist.nms import non_maximum_suppression

    tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
    tf.config.threading.set_inter_op_parallelism_threads(1)
    grid, prob_thresh, nms_thresh = (2, 2), 0.692478, 0.3
    model = StarDist2D(Config2D(axes="YXC", n_channel_in=3, n_rays=32, grid=grid), name="random", basedir=None)

    def network(image: Image, shrink: int) -> Maps:
        pixels = normalize(_shrunk(image.astype(np.float32), shrink), 1, 99.8, axis=(0, 1))
        prob, dist = model.predict(pixels, verbose=0)
        return prob, dist

    def ideal(labels: Labels, shrink: int) -> Maps:
        small = labels[::shrink, ::shrink]
        # On a ray that starts outside of nuclei the network may say anything.
        return edt_prob(small)[:: grid[0], :: grid[1]], star_dist(small, 32, grid=grid)

    def labels(maps: Maps, shrink: int) -> Labels:
        prob, dist = maps
        points, scores, rays = non_maximum_suppression(
            dist, prob, grid=grid, prob_thresh=prob_thresh, nms_thresh=nms_thresh
        )
        side = prob.shape[0] * grid[0] * shrink
        found: Labels = polygons_to_label(
            rays, points * shrink, shape=(side, side), prob=scores, scale_dist=(shrink, shrink)
        )
        return found

    return [
        Side(
            name,
            f"{512 // shrink} x {512 // shrink}",
            functools.partial(network, shrink=shrink),
            functools.partial(ideal, shrink=shrink),
            functools.partial(labels, shrink=shrink),
        )
        for name, shrink in (("StarDist", 1), ("StarDist at .5 um", 2))
    ]


def instanseg() -> list[Side]:
    """InstanSeg as `brightfield_nuclei` is trained: pixels of .5 microns."""
    from instanseg.utils.loss.instanseg_loss import InstanSeg_Torchscript, ProbabilityNet, generate_coordinate_map
    from instanseg.utils.models.InstanSeg_UNet import InstanSeg_UNet
    from instanseg.utils.utils import percentile_normalize

    shrink, reach = 2, 8.0
    net = InstanSeg_UNet(3, [[2, 2, 1]], layers=[256, 128, 64, 32], norm="BATCH").eval()
    net.pixel_classifier = _instanseg_classifier(ProbabilityNet(4, width=5))
    whole = InstanSeg_Torchscript(net, pixel_size=0.5).eval()
    traced = whole.fcn

    def network(image: Image) -> Maps:
        pixels = torch.from_numpy(_shrunk(image.astype(np.float32), shrink)).permute(2, 0, 1) / 255
        with torch.inference_mode():
            return (traced(percentile_normalize(pixels)[None].clamp(-2, 3))[0].numpy(),)

    def ideal(labels: Labels) -> Maps:
        small = labels[::shrink, ::shrink]
        places = generate_coordinate_map("linear", 2, *small.shape, torch.device("cpu")).numpy()
        # All pixels of a nucleus say one place, its middle, as the way there from their own.
        ways = np.zeros_like(places)
        for identity, box in enumerate(ndimage.find_objects(small), start=1):
            if box is not None:
                inside = small[box] == identity
                for way, place in zip(ways, places, strict=True):
                    way[box][inside] = place[box][inside].mean() - place[box][inside]
        share = np.clip(ways / reach + 0.5, 1e-3, 1 - 1e-3)
        inside_or_not = np.where(small > 0, 1, -1)
        depth = dense_targets(small, stride=1)[2]
        planes = [*np.log(share / (1 - share)), inside_or_not, inside_or_not, (depth - 0.5) * 15]
        return (np.stack(planes).astype(np.float32),)

    def labels(maps: Maps) -> Labels:
        whole.fcn = _Says(torch.from_numpy(maps[0])[None])
        with torch.inference_mode():
            found: Labels = whole(torch.zeros(1, 3, *maps[0].shape[1:]))[0, 0].numpy().astype(np.int32)
        return found.repeat(shrink, 0).repeat(shrink, 1)

    return [Side("InstanSeg", "256 x 256", network, ideal, labels)]


def cellpose() -> list[Side]:
    """Cellpose 3 as `cyto3`, which wants cells of 30 pixels, and as `nuclei`, which wants 17."""
    from cellpose.dynamics import labels_to_flows, resize_and_compute_masks
    from cellpose.models import CellposeModel

    # Of a usual nucleus, in pixels of the tile.
    diameter = 30

    def side(name: str, mean: int) -> Side:
        model = CellposeModel(gpu=False, pretrained_model=False, diam_mean=float(mean))

        def network(image: Image) -> Maps:
            _, (_, flows, cell), _ = model.eval(image, channels=[0, 0], diameter=diameter, compute_masks=False)
            return flows, cell

        def labels(maps: Maps) -> Labels:
            found: Labels = resize_and_compute_masks(*maps, niter=int(200 * diameter / mean)).astype(np.int32)
            return found

        seen = 512 * mean // diameter
        return Side(name, f"{seen} x {seen}, in parts of 224", network, ideal, labels)

    def ideal(labels: Labels) -> Maps:
        flows = labels_to_flows([labels], device=torch.device("cpu"))[0]
        # The network is trained on five times the flows.
        return 5 * flows[2:4], np.where(labels > 0, 6, -6).astype(np.float32)

    return [side("Cellpose 3 cyto3", 30), side("Cellpose 3 nuclei", 17)]


def hovernet() -> list[Side]:
    """HoVer-Net in its fast form without types: parts of 256 pixels, of which it says the inner 164."""
    with _settings_kept():
        from hover_net.models.hovernet.net_desc import HoVerNet
        from hover_net.models.hovernet.post_proc import process

    part, said = 256, 164
    model = HoVerNet(mode="fast").eval()

    def network(image: Image) -> Maps:
        count = -(-image.shape[0] // said)
        before, after = (part - said) // 2, count * said + (part - said) // 2 - image.shape[0]
        padded = np.pad(image, ((before, after), (before, after), (0, 0)), mode="reflect")
        starts = [(row * said, column * said) for row in range(count) for column in range(count)]
        parts = torch.from_numpy(np.stack([padded[y : y + part, x : x + part] for y, x in starts])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            raw = [model(parts[index : index + 1].float()) for index in range(len(parts))]
        maps = torch.cat([torch.cat([some["np"].softmax(1)[:, 1:], some["hv"]], 1) for some in raw]).numpy()
        laid = maps.reshape(count, count, 3, said, said).transpose(0, 3, 1, 4, 2)
        laid = laid.reshape(count * said, count * said, 3)
        return (laid[: image.shape[0], : image.shape[1]],)

    def ideal(labels: Labels) -> Maps:
        return (np.dstack([labels > 0, *_hv_maps(labels)]).astype(np.float32),)

    def labels(maps: Maps) -> Labels:
        found: Labels = process(maps[0])[0].astype(np.int32)
        return found

    return [Side("HoVer-Net fast", "16 parts of 256 x 256", network, ideal, labels)]


def cellvit() -> list[Side]:
    """CellViT-256 with PanNuke's classes, the whole tile in one pass."""
    from cellvit.models.cell_segmentation.cellvit_256 import CellViT256
    from cellvit.models.cell_segmentation.postprocessing import DetectionCellPostProcessor

    kinds = 6
    model = CellViT256("", num_nuclei_classes=kinds, num_tissue_classes=19).eval()
    post_processor = DetectionCellPostProcessor(nr_types=kinds, magnification=40)

    def network(image: Image) -> Maps:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            raw = model(pixels)
        binary, kind = raw["nuclei_binary_map"].softmax(1), raw["nuclei_type_map"].softmax(1)
        return tuple(plane.permute(0, 2, 3, 1).numpy() for plane in (binary, raw["hv_map"], kind))

    def ideal(labels: Labels) -> Maps:
        inside = labels > 0
        kind = np.zeros((*labels.shape, kinds), np.float32)
        kind[..., 0], kind[..., 1] = ~inside, inside
        planes = np.dstack([~inside, inside]), np.dstack(list(_hv_maps(labels))), kind
        return tuple(plane[None].astype(np.float32) for plane in planes)

    def labels(maps: Maps) -> Labels:
        names = ("nuclei_binary_map", "hv_map", "nuclei_type_map")
        said = dict(zip(names, map(torch.from_numpy, maps), strict=True))
        # Without outlines and types of the nuclei, which the others do not give either.
        found, _ = post_processor._get_pred_inst_tensor(post_processor._prepare_pred_maps(said)[0])
        same: Labels = found.astype(np.int32)
        return same

    return [Side("CellViT-256", "512 x 512", network, ideal, labels)]


PEERS: dict[str, Callable[[], list[Side]]] = {
    "StarDist": stardist,
    "InstanSeg": instanseg,
    "Cellpose": cellpose,
    "HoVer-Net": hovernet,
    "CellViT": cellvit,
}


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """Importing HoVer-Net switches off warnings, logs everything and changes how processes start, for all alike."""
    warn, level, method = warnings.warn, logging.root.level, multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        warnings.warn = warn
        logging.root.setLevel(level)
        multiprocessing.set_start_method(method, force=True)


class _Says(torch.nn.Module):
    """A network that has always said the same."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.maps


def _instanseg_classifier(classifier: Any) -> Any:
    """Weights by which a pixel belongs to a seed where both say the same place and the pixel says that it is inside.

    Post-processing asks this small network of each pixel near a seed, so random weights would give no nuclei. Its
    input is the difference in place, y and x, and two free planes, of which the first says inside or not.
    """
    with torch.no_grad():
        for layer in (classifier.fc1, classifier.fc2, classifier.fc3):
            layer.weight.zero_()
            layer.bias.zero_()
        for unit, (plane, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1), (2, -1))):
            classifier.fc1.weight[unit, plane] = sign
        classifier.fc2.weight.copy_(torch.eye(5))
        classifier.fc3.weight.fill_(-10)
        classifier.fc3.bias.fill_(5)
    return classifier


def _shrunk(image: Floats, factor: int) -> Floats:
    """Means over squares of pixels."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    small: Floats = image.reshape(rows, factor, columns, factor, 3).mean((1, 3))
    return small


def _hv_maps(labels: Labels) -> tuple[Floats, Floats]:
    """HoVer-Net's targets: how far right and down of its nucleus's middle a pixel lies, -1 to 1 at the far sides."""
    across, down = np.zeros(labels.shape, np.float32), np.zeros(labels.shape, np.float32)
    for identity, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        inside = labels[box] == identity
        for plane, positions in zip((down, across), np.nonzero(inside), strict=True):
            way = (positions - np.floor(positions.mean() + 0.5)).astype(np.float32)
            for half in (way < 0, way > 0):
                way[half] /= np.abs(way[half]).max(initial=0)
            plane[box][inside] = way
    return across, down
