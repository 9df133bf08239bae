"""Writers of the published layouts, from known images and labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from nuclora.data.tiles import Sample
from nuclora.io.geojson import outline

SHAPE = (48, 64)


def known(seed: int, shape: tuple[int, int] = SHAPE) -> Sample:
    """A tile of random pixels and apart or touching discs, ids 1..n, one of them with a hole."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    count = 0
    for row in range(8, shape[0], 14):
        for column in range(8, shape[1], 13):
            disc = (y - row) ** 2 + (x - column) ** 2 <= rng.integers(9, 36)
            if rng.random() < 0.9:
                count += 1
                labels[disc & (labels == 0)] = count
    labels[8, 8] = 0
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Sample(image, labels, np.zeros(shape, np.bool_))


def same_nuclei(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether two label maps are equal but for the numbers of the ids."""
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    ids = [len(np.unique(found)), len(np.unique(expected)), pairs.shape[1]]
    return len(set(ids)) == 1 and np.array_equal(found > 0, expected > 0)


def png(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def tif(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels)
    return path


def rings(labels: NDArray[np.int32], identity: int) -> list[list[list[float]]]:
    return [ring.tolist() for ring in outline(labels == identity)]


def ids_of(labels: NDArray[np.int32]) -> list[int]:
    return [int(value) for value in np.unique(labels) if value]


def aperio(labels: NDArray[np.int32], microns: str = "0.252000") -> str:
    """Regions of nuclei, and of their holes as negative regions."""
    regions = []
    for identity in ids_of(labels):
        for index, ring in enumerate(rings(labels, identity)):
            vertices = "".join(f'<Vertex X="{x:.6f}" Y="{y:.6f}" Z="0"/>' for x, y in ring)
            regions.append(
                f'<Region Id="{len(regions) + 1}" NegativeROA="{int(index > 0)}"><Attributes/>'
                f"<Vertices>{vertices}</Vertices></Region>"
            )
    return (
        f'<Annotations MicronsPerPixel="{microns}"><Annotation Id="1" Name="" ReadOnly="0"><Attributes>'
        '<Attribute Name="Description" Id="0" Value=""/></Attributes><Regions><RegionAttributeHeaders/>'
        f"{''.join(regions)}</Regions><Plots/></Annotation></Annotations>"
    )


def write_monuseg(root: Path, tiles: Sequence[Sample]) -> None:
    for index, tile in enumerate(tiles):
        name = f"TCGA-A7-A13{index}-01Z-00-DX1"
        tif(root / "Tissue Images" / f"{name}.tif", tile.image)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(aperio(tile.labels))


def write_pannuke(root: Path, tiles: Sequence[Sample]) -> None:
    """Every second tile in each of two folds; ids dealt out to the classes, as floats."""
    for fold in (1, 2):
        mine = tiles[fold - 1 :: 2]
        images = np.stack([tile.image for tile in mine]).astype(np.float64)
        masks = np.zeros((len(mine), *SHAPE, 6))
        for index, tile in enumerate(mine):
            for identity in ids_of(tile.labels):
                masks[index, ..., identity % 5][tile.labels == identity] = identity
            masks[index, ..., 5] = tile.labels == 0
        for part in ("images", "masks"):
            (root / f"Fold {fold}" / part / f"fold{fold}").mkdir(parents=True)
        place = root / f"Fold {fold}" / "images" / f"fold{fold}"
        np.save(place / "images.npy", images)
        np.save(place / "types.npy", np.array([("Breast", "Bile-duct")[index % 2] for index in range(len(mine))]))
        np.save(root / f"Fold {fold}" / "masks" / f"fold{fold}" / "masks.npy", masks)


def write_consep(root: Path, tiles: Sequence[Sample]) -> None:
    for index, tile in enumerate(tiles):
        part, number = ("Train", "Test")[index % 2], index // 2
        name = f"{part.lower()}_{number}"
        png(root / part / "Images" / f"{name}.png", tile.image)
        png(root / part / "Overlay" / f"{name}.png", 255 - tile.image)
        (root / part / "Labels").mkdir(exist_ok=True)
        content = {"inst_map": tile.labels.astype(float), "type_map": (tile.labels > 0) * 2.0}
        savemat(root / part / "Labels" / f"{name}.mat", {**content, "inst_type": np.ones((3, 1))})


def write_lizard(root: Path, tiles: Sequence[Sample]) -> None:
    labels = root / "Lizard_Labels" / "Labels"
    labels.mkdir(parents=True)
    rows = ["Filename,Source,Split"]
    for index, tile in enumerate(tiles):
        name = f"{('crag', 'glas')[index % 2]}_{index}"
        png(root / f"Lizard_Images{1 + index % 2}" / f"{name}.png", tile.image)
        ids = np.array(ids_of(tile.labels))[:, None]
        content = {"inst_map": tile.labels, "id": ids, "class": ids * 0 + 1, "bbox": np.zeros((len(ids), 4))}
        savemat(labels / f"{name}.mat", {**content, "centroid": np.zeros((len(ids), 2))}, do_compression=True)
        rows.append(f"{name},{name[:4]},{1 + index % 3}")
    (root / "Lizard_Labels" / "info.csv").write_text("\n".join(rows) + "\n")


def compress(runs: Sequence[int]) -> str:
    """Run lengths as `rleToString` of COCO's C library writes them."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr(bits + (0x20 if more else 0) + 48)
    return text


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False).astype(bool))
    runs = np.diff([0, *edges, flat.size]).tolist()
    return runs[:-1] if runs[-1] == 0 else runs


def write_coco(root: Path, tiles: Sequence[Sample]) -> None:
    """Nuclei as polygons, plain and compressed run lengths in turn; one with a hole never as polygons."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, tile in enumerate(tiles):
        name = f"tüle {index}.png"
        png(root / "train2017" / name, tile.image)
        images.append({"id": 7 * index, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]})
        for identity in ids_of(tile.labels):
            mask = tile.labels == identity
            outlines = rings(tile.labels, identity)
            segmentation: Any = [np.ravel(ring).tolist() for ring in outlines]
            if identity % 3 == 1 or len(outlines) > 1:
                segmentation = {"size": list(SHAPE), "counts": run_lengths(mask)}
            elif identity % 3 == 2:
                segmentation = {"size": list(SHAPE), "counts": compress(run_lengths(mask))}
            annotations.append(
                {"id": len(annotations), "image_id": 7 * index, "category_id": 1 + identity % 2, "iscrowd": 0,
                 "segmentation": segmentation, "bbox": [0, 0, 1, 1], "area": int(mask.sum())}
            )  # fmt: skip
    # Interleaved, because no rule says that the annotations of an image stand together.
    content = {
        "info": {"about": "Zellkerne, schön"},
        "images": images,
        "annotations": annotations[::2] + annotations[1::2],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(
        json.dumps(content, ensure_ascii=False, indent=1), "utf-8"
    )


def feature(geometry: dict[str, Any] | None, kind: str = "detection", **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": {"objectType": kind}, **more}


def write_qupath(root: Path, tiles: Sequence[Sample]) -> None:
    """Polygons with holes and, of every second nucleus, multi-polygons, inside a region's annotation."""
    for index, tile in enumerate(tiles):
        png(root / "images" / f"slide {index}.png", tile.image)
        h, w = SHAPE
        box = [[[0, 0], [w, 0], [w, h], [0, h], [0, 0]]]
        features = [feature({"type": "Polygon", "coordinates": box}, "annotation")]
        for identity in ids_of(tile.labels):
            polygon = rings(tile.labels, identity)
            geometry = {"type": "Polygon", "coordinates": polygon}
            if identity % 2:
                geometry = {"type": "MultiPolygon", "coordinates": [polygon]}
            features.append(feature(geometry))
        content = {"type": "FeatureCollection", "features": features}
        (root / "images" / f"slide {index}.png.geojson").write_text(json.dumps(content))


def write_cellpose(root: Path, tiles: Sequence[Sample]) -> None:
    for index, tile in enumerate(tiles):
        organ = root / ("liver", "train")[index % 2]
        if index < 2:
            tif(organ / f"{index:03d}_img.tif", tile.image)
            png(organ / f"{index:03d}_masks.png", tile.labels.astype(np.uint16))
        else:
            png(organ / f"{index}.png", tile.image)
            tif(organ / f"{index}_cp_masks.tif", tile.labels.astype(np.uint16))
            tif(organ / f"{index}_flows.tif", tile.labels.astype(np.uint8))
        np.save(organ / f"{index}_seg.npy", {"masks": tile.labels}, allow_pickle=True)  # type: ignore[arg-type]


def write_stardist(root: Path, tiles: Sequence[Sample]) -> None:
    for index, tile in enumerate(tiles):
        part = ("train", "test")[index % 2]
        tif(root / part / "images" / f"{index // 2}.tif", tile.image)
        tif(root / part / "masks" / f"{index // 2}.tif", tile.labels.astype(np.uint16))


def write_dsb2018(root: Path, tiles: Sequence[Sample]) -> None:
    for index, tile in enumerate(tiles):
        folder = root / "stage1_train" / f"{index:02d}ab"
        rgba = np.dstack([tile.image, np.full(SHAPE, 255, np.uint8)])
        png(folder / "images" / f"{index:02d}ab.png", rgba)
        for identity in ids_of(tile.labels):
            png(folder / "masks" / f"{identity:04x}.png", (tile.labels == identity).astype(np.uint8) * 255)


WRITERS: dict[str, Callable[[Path, Sequence[Sample]], None]] = {
    "monuseg": write_monuseg,
    "pannuke": write_pannuke,
    "matlab": write_consep,
    "lizard": write_lizard,
    "coco": write_coco,
    "qupath": write_qupath,
    "cellpose": write_cellpose,
    "stardist": write_stardist,
    "dsb2018": write_dsb2018,
}
FORMAT_OF = {name: "matlab" if name == "lizard" else name for name in WRITERS}
