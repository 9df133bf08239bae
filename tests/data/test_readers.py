"""What is particular to one format each."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import SHAPE, WRITERS, aperio, compress, feature, known, png, run_lengths, same_nuclei, tif
from PIL import Image
from scipy.io import savemat
from skimage.measure import find_contours

from nuclora.data import list_tiles, open_tiles
from nuclora.data.check import check_data
from nuclora.data.convert import convert_data
from nuclora.data.polygons import fill, paint
from nuclora.data.rle import decode, runs_of
from nuclora.errors import NucloraError
from slide_makers import write_slide

TILE = known(1)


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def test_a_pixel_is_inside_if_its_centre_is() -> None:
    def count(x: float, side: float) -> int:
        return len(fill([square(x, x, side)], (20, 20)))

    assert count(2, 6) == 36
    assert count(2.4, 6) == 36  # from 2.4 to 8.4: the centres 2.5 to 7.5
    assert count(2.6, 6) == 36
    assert count(2.6, 0.8) == 0
    assert fill([square(-5, -5, 8)], (20, 20)).tolist() == [
        row * 20 + column for row in range(3) for column in range(3)
    ]
    assert fill([square(30, 3, 8)], (20, 20)).tolist() == []
    assert len(fill([square(2, 2, 8), square(4, 4, 2)], (20, 20))) == 64 - 4
    for wrong in ([[(1, 2, 3), (4,)]], [[(0, np.nan), (1, 1), (2, 0)]], [[1, 2, 3, 4, 5, 6]]):
        with pytest.raises(ValueError, match=r"points|inhomogeneous"):
            fill(wrong, (20, 20))


def test_a_centre_on_the_outline_is_of_one_neighbour_only() -> None:
    left, right, below = (fill([square(x, y, 4)], (20, 20)) for x, y in ((2.5, 2.5), (6.5, 2.5), (2.5, 6.5)))
    assert [len(left), len(right), len(below)] == [16, 16, 16]
    assert not set(left) & set(right)
    assert not set(left) & set(below)
    upper, lower = fill([[[0, 0], [10, 0], [10, 10]]], (20, 20)), fill([[[0, 0], [10, 10], [0, 10]]], (20, 20))
    assert sorted([*upper, *lower]) == fill([square(0, 0, 10)], (20, 20)).tolist()
    assert len(fill([square(2.5, 2.5, 8), square(4.5, 4.5, 2)], (20, 20))) == 64 - 4
    y, x = np.mgrid[:41, :41]
    disc = (y - 20) ** 2 + (x - 20) ** 2 <= 12**2
    # Between pixels it runs through their centres, .5 from either.
    found = fill([find_contours(disc.astype(float), 0.5)[0][:, ::-1] + 0.5], disc.shape)
    assert abs(len(found) - disc.sum()) <= 2
    assert np.isin(found, np.flatnonzero(disc)).mean() > 0.97


def test_of_nuclei_that_overlap_the_smallest_wins_and_none_is_buried() -> None:
    small, large = fill([square(4, 4, 3)], (20, 20)), fill([square(2, 2, 9)], (20, 20))
    for order in ([small, large], [large, small]):
        labels = paint(order, (20, 20))
        assert sorted(np.bincount(labels.ravel())[1:].tolist()) == [9, 81 - 9]
    equal = paint([large, large], (20, 20))
    assert set(np.unique(equal)) == {0, 1}


# Written by pycocotools 2.0.11: an ellipse with a hole and a corner, 50 x 70.
PUBLISHED = (
    r"c81\1:I4L4M2M4N0O2N2N2N2O0O2O000O2O000O2O00ZOJ06OL04ON02O000000O110OO10000001N021L041J06f0001N10001N10001N101N2N2"
    r"N2N102L3N3L4L7Fl69PI00000000000000000"
)


def test_compressed_run_lengths_are_those_of_cocos_library() -> None:
    y, x = np.mgrid[:50, :70]
    mask = (((y - 25) / 20) ** 2 + ((x - 30) / 25) ** 2 <= 1) & (((y - 25) ** 2 + (x - 30) ** 2) > 30)
    mask[40:, 60:] = True
    np.testing.assert_array_equal(decode(PUBLISHED, (50, 70)), np.flatnonzero(mask))
    assert compress(run_lengths(mask)) == PUBLISHED
    np.testing.assert_array_equal(decode(run_lengths(mask), (50, 70)), np.flatnonzero(mask))


def test_run_lengths_by_hand() -> None:
    assert decode([0, 6], (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert decode([6], (2, 3)).tolist() == []
    assert decode([1, 1, 4], (2, 3)).tolist() == [3]  # the second of the first column
    assert runs_of("") == []
    assert runs_of("P1") == [32]  # two characters: 0 with more, then 1
    assert runs_of("1231") == [1, 2, 3, 3]  # the fourth is 2 + 1
    assert runs_of("123O") == [1, 2, 3, 1]  # 'O' is -1
    for wrong in ([1, -1, 6], [1.5, 4.5], [7], [5], [[1], [5]], "P", "é", "0 6"):
        with pytest.raises(ValueError, match=r"run lengths"):
            decode(wrong, (2, 3))  # type: ignore[arg-type]


def coco(root: Path, annotations: list[Any], **entry: Any) -> Path:
    png(root / "a.png", TILE.image)
    image = {"id": 1, "file_name": "a.png", "height": SHAPE[0], "width": SHAPE[1], **entry}
    path = root / "_annotations.coco.json"
    path.write_text(json.dumps({"images": [image], "annotations": annotations}))
    return path


def annotation(segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 1, "category_id": 1, "segmentation": segmentation, **more}


def test_coco_crowds_are_ignored_and_parts_belong_together(tmp_path: Path) -> None:
    parts = [np.ravel(square(2, 2, 4)).tolist(), np.ravel(square(20, 2, 4)).tolist()]
    crowd = np.zeros(SHAPE, bool)
    crowd[30:40, 30:40] = True
    counts = {"size": list(SHAPE), "counts": run_lengths(crowd)}
    coco(tmp_path, [annotation(parts), annotation(counts, iscrowd=1)])
    tiles = open_tiles(tmp_path)
    assert tiles.names == ["a"]
    sample = tiles[0].read()
    assert np.bincount(sample.labels.ravel())[1:].tolist() == [32]
    np.testing.assert_array_equal(sample.ignore, crowd)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ([], "no segmentation"),
        (None, "no segmentation"),
        ([[1, 2, 3, 4, 5]], "a polygon that is no list of x and y in turn"),
        ([["a", 2, 3, 4, 5, 6]], "a polygon that is no list of x and y in turn"),
        ({"size": [3, 3], "counts": [9]}, r"run lengths of a mask of size \[3, 3\] for an image of \[48, 64\]"),
        ({"size": [48, 64], "counts": [9]}, "run lengths of 9 pixels for a mask of 3072"),
        ({"size": [48, 64]}, "run lengths without counts"),
        ({"size": [48, 64], "counts": "~~"}, "the character '~' in run lengths"),
    ],
)
def test_bad_segmentations_are_named(tmp_path: Path, segmentation: Any, told: str) -> None:
    coco(tmp_path, [annotation(segmentation)])
    with pytest.raises(NucloraError, match=rf"_annotations.coco.json: annotation 5 of a: {told}; export it"):
        open_tiles(tmp_path)[0].read()


def test_coco_files_that_do_not_fit_their_images_are_named(tmp_path: Path) -> None:
    path = coco(tmp_path, [], width=65)
    with pytest.raises(NucloraError, match=r"a\.png: 48x64 pixels .* says 48x65"):
        open_tiles(tmp_path)[0].read()
    for name in ("b.png", "../outside.png", "/etc/hostname", "a\nb.png"):
        png(tmp_path.parent / "outside.png", TILE.image)
        coco(tmp_path, [], file_name=name)
        with pytest.raises(NucloraError, match=r"json: no image '.*put it into") as caught:
            open_tiles(tmp_path)
        assert "\n" not in str(caught.value)
    coco(tmp_path, [annotation([], image_id=8)])
    with pytest.raises(NucloraError, match="annotations of an image 8 that is not among the images"):
        open_tiles(tmp_path)
    path = coco(tmp_path, [annotation([[1, 1, 5, 1, 5, 5]])])
    tile = open_tiles(tmp_path)[0]
    path.write_text(" " * 20 + path.read_text())
    with pytest.raises(NucloraError, match="changed since it was listed"):
        tile.read()
    path.write_text('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"id": 3}]}')
    with pytest.raises(NucloraError, match=r"cannot be read \(KeyError at byte \d+\)"):
        open_tiles(tmp_path)
    path.write_text('{"images": 3, "annotations": []}')
    with pytest.raises(NucloraError, match=r"cannot be read \(ValueError"):
        open_tiles(tmp_path)


@pytest.mark.parametrize("layout", ["matlab", "coco", "cellpose", "qupath", "monuseg"])
@pytest.mark.parametrize("below", ["overlay", "inner/.."])
def test_what_the_folders_above_are_called_does_not_matter(layout: str, below: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    root = tmp_path / below / "set"
    root.mkdir(parents=True)
    WRITERS[layout](root, [TILE, TILE])
    tiles = open_tiles(root)
    assert len(tiles) == 2
    assert same_nuclei(tiles[0].read().labels, TILE.labels)


@pytest.mark.parametrize("layout", ["qupath", "matlab", "monuseg", "cellpose"])
def test_what_was_predicted_beside_the_images_is_no_image(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, [TILE, known(2)])
    expected = open_tiles(tmp_path).names
    for tile in open_tiles(tmp_path):
        tif(tile.image.with_suffix(".labels.tif"), tile.read().labels)
        png(tile.image.with_suffix(".overlay.png"), tile.read().image)
    assert open_tiles(tmp_path).names == expected
    assert check_data(tmp_path).faults == ()


def test_labels_may_be_called_as_what_is_predicted(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.labels.png", TILE.image)
    tif(tmp_path / "labels" / "a.labels.tif", TILE.labels)
    np.testing.assert_array_equal(open_tiles(tmp_path)[0].read().labels, TILE.labels)


def test_masks_of_cvat_are_no_crowds(tmp_path: Path) -> None:
    """CVAT and Datumaro call every mask a crowd."""
    lengths = {"size": list(SHAPE), "counts": run_lengths(np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) < 30)}
    attributes = {"attributes": {"occluded": False}}
    coco(tmp_path, [annotation(lengths, iscrowd=1, **attributes), annotation([[9, 9, 14, 9, 14, 14, 9, 14]], id=6)])
    sample = open_tiles(tmp_path)[0].read()
    assert np.bincount(sample.labels.ravel())[1:].tolist() == [30, 25]
    assert sample.ignore is None or not sample.ignore.any()


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("images/default/a.png", "a.png"),
        ("default/images/a.png", "a.png"),
        ("default/a.png", "a.png"),
        ("images/b/a.png", "b\\a.png"),
    ],
)
def test_images_of_coco_are_found_where_tools_put_them(image: str, named: str, tmp_path: Path) -> None:
    source = coco(tmp_path / "source", [annotation([[9, 9, 14, 9, 14, 14, 9, 14]])], file_name=named)
    for path, place in ((source, "annotations/instances_default.json"), (source.with_name("a.png"), image)):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "data" / place)
    assert open_tiles(tmp_path / "data")[0].read().labels.sum() == 25


def test_images_outside_of_coco_are_none_of_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = coco(tmp_path / "data", [annotation([[9, 9, 14, 9, 14, 14, 9, 14]])], file_name="../outside/a.png")
    (tmp_path / "outside").mkdir()
    source.with_name("a.png").rename(tmp_path / "outside" / "a.png")
    monkeypatch.chdir(tmp_path / "data")
    for root in (tmp_path / "data", Path()):
        with pytest.raises(NucloraError, match=r"no image '\.\./outside/a\.png'"):
            open_tiles(root)


def test_coco_may_begin_with_its_type(tmp_path: Path) -> None:
    path = coco(tmp_path, [annotation([[9, 9, 14, 9, 14, 14, 9, 14]])])
    path.write_text('{"type": "instances", ' + path.read_text()[1:])
    assert open_tiles(tmp_path)[0].read().labels.sum() == 25


def test_coco_memory_does_not_hold_the_annotations(tmp_path: Path) -> None:
    coco(tmp_path, [annotation([np.ravel(square(2, 2, 4)).tolist() * 50]) for _ in range(200)])
    assert len(pickle.dumps(open_tiles(tmp_path)[0])) < 200 * 16 + 1000


def geojson(root: Path, content: Any) -> Path:
    png(root / "a.png", TILE.image)
    path = root / "a.geojson"
    path.write_text(json.dumps(content))
    return path


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def test_of_qupaths_cells_the_nucleus_is_taken_and_ignored_classes_are_ignored(tmp_path: Path) -> None:
    cell = feature(polygon(square(0, 0, 20)), "cell", nucleusGeometry=polygon(square(5, 5, 6), square(7, 7, 2)))
    bare = feature(polygon(square(30, 0, 10)), "cell")
    vague = feature(polygon(square(40, 20, 10)), "annotation")
    vague["properties"]["classification"] = {"name": "Ignore*", "color": [1, 2, 3]}
    point = feature({"type": "Point", "coordinates": [3, 3]}, "detection")
    plane = feature({"type": "Polygon", "coordinates": [[[*xy, 0] for xy in square(20, 30, 5)]]}, "detection")
    geojson(tmp_path, [cell, bare, vague, point, plane, feature(None), feature(polygon(square(0, 0, 40)), "tile")])
    sample = open_tiles(tmp_path)[0].read()
    assert sorted(np.bincount(sample.labels.ravel())[1:].tolist()) == [25, 32]
    assert sample.ignore.sum() == 100
    assert sample.ignore[20:30, 40:50].all()


def test_what_is_drawn_by_hand_in_qupath_is_told_by_its_class(tmp_path: Path) -> None:
    found = feature(polygon(square(0, 0, 5)), "detection")
    drawn = feature(polygon(square(10, 10, 6)), "annotation")
    drawn["properties"]["classification"] = {"name": "Nucleus", "color": [1, 2, 3]}
    derived = feature(polygon(square(40, 40, 7)), "annotation")
    derived["properties"]["classification"] = {"names": ["Nucleus", "Positive"]}
    region = feature(polygon(square(0, 0, 30)), "annotation")
    region["properties"]["classification"] = {"name": "Tumor"}
    vague = feature(polygon(square(20, 20, 4)), "annotation")
    vague["properties"]["classification"] = {"names": ["Ignore*"]}
    for features, areas in (([found, drawn, derived, region, vague], [25, 36, 49]), ([region, drawn, vague], [36])):
        geojson(tmp_path, features)
        sample = open_tiles(tmp_path)[0].read()
        assert sorted(np.bincount(sample.labels.ravel())[1:].tolist()) == areas
        assert sample.ignore.sum() == 16
        (note,) = (note for note in check_data(tmp_path).notes if "regions" in note.text)
        assert note.text == "1 tile with annotations that are taken for regions, not for nuclei (1 in all)"
    # A name is no class, and a damaged file of others says nothing of this one.
    region["properties"] = {"objectType": "annotation", "name": "Nucleus"}
    geojson(tmp_path, [region])
    png(tmp_path / "b.png", TILE.image[::-1])
    (tmp_path / "b.geojson").write_text('[{"classification": "Nucleus"')
    assert open_tiles(tmp_path)["a"].read().labels.sum() == 900
    assert [Path(fault.path).name for fault in check_data(tmp_path).faults] == ["b.geojson"]


@pytest.mark.parametrize("name", ["a.geojson", "a.ome.geojson", "a.ome.tif.geojson"])
def test_an_ome_tiff_is_one_suffix_for_qupath(name: str, tmp_path: Path) -> None:
    geojson(tmp_path / "source", [feature(polygon(square(0, 0, 5)), "detection")]).rename(tmp_path / name)
    tif(tmp_path / "a.ome.tif", TILE.image)
    shutil.rmtree(tmp_path / "source")
    assert open_tiles(tmp_path)[0].read().labels.sum() == 25


def test_qupaths_annotations_are_nuclei_where_nothing_else_is(tmp_path: Path) -> None:
    old = {"type": "Feature", "id": "PathAnnotationObject", "geometry": polygon(square(2, 2, 5)), "properties": {}}
    geojson(tmp_path, old)
    assert open_tiles(tmp_path)[0].read().labels.sum() == 25
    geojson(tmp_path, [old, {**old, "id": "PathDetectionObject", "geometry": polygon(square(3, 3, 2))}])
    assert open_tiles(tmp_path)[0].read().labels.sum() == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "no GeoJSON features"),
        (3, "no GeoJSON features"),
        ({"type": "FeatureCollection"}, "no GeoJSON features; export the objects from QuPath again"),
        (
            [feature({"type": "Polygon", "coordinates": [[["a", 2], [3, 4], [5, 6]]]})],
            "object 1: coordinates that make no",
        ),
        ([feature({"type": "Polygon", "coordinates": 3})], "object 1: coordinates that make no Polygon"),
        ([{**feature(None), "geometry": [1, 2]}], "object 1: coordinates that make no geometry"),
        ([{**feature(None), "geometry": "x"}], "object 1: coordinates that make no geometry"),
    ],
)
def test_bad_geojson_is_named(tmp_path: Path, content: Any, told: str) -> None:
    geojson(tmp_path, content)
    with pytest.raises(NucloraError, match=rf"a\.geojson: {told}"):
        open_tiles(tmp_path)[0].read()


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_geojson_file_has_no_features(tmp_path: Path, content: str) -> None:
    geojson(tmp_path, []).write_text(content)
    with pytest.raises(NucloraError, match=r"a\.geojson: no GeoJSON features; export the objects from QuPath again"):
        open_tiles(tmp_path)[0].read()


def test_nuclei_without_a_pixel_are_told_by_the_check(tmp_path: Path) -> None:
    height, width = SHAPE
    parts = {"type": "MultiPolygon", "coordinates": [[square(width, 0, 5)], [square(0, height + 3, 5)]]}
    geojson(
        tmp_path,
        [
            # Outside, between the centres of pixels, without an outline, and under another.
            feature(polygon(square(-9, 2, 9)), "detection"),
            feature(parts, "detection"),
            feature({"type": "GeometryCollection", "geometries": [polygon(square(0, -9, 5)), parts]}, "detection"),
            feature(polygon(square(9.6, 9.6, 0.3)), "detection"),
            feature({"type": "Polygon", "coordinates": []}, "detection"),
            feature(polygon(square(-5, -5, 7)), "detection"),
            feature(polygon(square(-5, -5, 7)), "detection"),
            # Inside with one part of two.
            feature({**parts, "coordinates": [*parts["coordinates"], [square(20, 20, 5)]]}, "detection"),
            # No nuclei: a region, and a point.
            feature(polygon(square(900, 900, 9)), "annotation"),
            feature({"type": "Point", "coordinates": [900, 900]}, "detection"),
        ],
    )
    (fault,) = check_data(tmp_path).faults
    assert (fault.path, fault.spoils) == (str(tmp_path / "a.geojson"), False)
    assert fault.reason == "6 of 8 nuclei left no pixel: outside the image, under others, or too small"
    assert fault.mend == "if they are many: is it the file of another image, or of a slide?"


@pytest.mark.parametrize("layout", ["coco", "monuseg", "dsb2018"])
def test_other_drawn_layouts_tell_of_nuclei_without_a_pixel(tmp_path: Path, layout: str) -> None:
    larger = np.zeros((100, 100), np.int32)
    larger[2:8, 2:8], larger[80:90, 80:90] = 1, 2
    if layout == "coco":
        coco(tmp_path, [annotation([np.ravel(square(x, x, 6)).tolist()]) for x in (2, 80)])
    elif layout == "monuseg":
        png(tmp_path / "a.png", TILE.image)
        (tmp_path / "a.xml").write_text(aperio(larger))
    else:
        png(tmp_path / "a" / "images" / "a.png", TILE.image)
        for number in (1, 2):
            png(tmp_path / "a" / "masks" / f"{number}.png", (larger == number)[: SHAPE[0], : SHAPE[1]].astype(np.uint8))
    (fault,) = check_data(tmp_path).faults
    assert fault.reason == "1 of 2 nuclei left no pixel: outside the image, under others, or too small"
    assert not fault.spoils


def test_what_nuclora_predicts_is_read_back(tmp_path: Path) -> None:
    from nuclora.io.geojson import write_geojson

    png(tmp_path / "a.png", TILE.image)
    write_geojson(tmp_path / "a.geojson", TILE.labels, np.ones(TILE.labels.max(), np.float32))
    np.testing.assert_array_equal(open_tiles(tmp_path)[0].read().labels, TILE.labels)


def test_aperio_layers_of_ambiguous_nuclei_are_ignored(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.int32)
    labels[10:20, 10:20], labels[30:40, 30:40] = 1, 2
    png(tmp_path / "a_1.png", TILE.image)
    vague = aperio(labels * (labels == 2)).replace('Name="Description"', 'Name="Ambiguous"')
    layers = aperio(labels * (labels == 1), microns="0").replace("</Annotations>", "")
    (tmp_path / "a_1.xml").write_text(layers + vague[vague.index("<Annotation ") :])
    tile = open_tiles(tmp_path)[0]
    assert tile.microns_per_pixel is None  # no TCGA slide, and the file does not say
    sample = tile.read()
    np.testing.assert_array_equal(sample.labels, labels * (labels == 1))
    np.testing.assert_array_equal(sample.ignore, labels == 2)


def test_a_hole_is_of_the_nucleus_around_it_alone(tmp_path: Path) -> None:
    def region(x: float, side: float, hole: int) -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in square(x, x, side))
        return f'<Region NegativeROA="{hole}"><Vertices>{vertices}</Vertices></Region>'

    def layer(name: str, *regions: str) -> str:
        told = f'<Attributes><Attribute Name="{name}"/></Attributes>'
        return f"<Annotation>{told}<Regions>{''.join(regions)}</Regions></Annotation>"

    png(tmp_path / "a.png", TILE.image)
    nuclei = layer("", region(0, 30, 0), region(5, 20, 1), region(10, 10, 0), region(13, 4, 1))
    vague = layer("Ambiguous", region(34, 10, 0), region(36, 4, 1))
    (tmp_path / "a.xml").write_text(f"<Annotations>{nuclei}{vague}</Annotations>")
    sample = open_tiles(tmp_path)[0].read()
    assert np.bincount(sample.labels.ravel())[1:].tolist() == [30**2 - 20**2, 10**2 - 4**2]
    assert sample.ignore.sum() == 10**2 - 4**2


def test_an_image_of_monusac_may_be_a_slide_alone(tmp_path: Path) -> None:
    for name in ("TCGA-AA_1", "TCGA-AA_2"):
        (tmp_path / f"{name}.xml").write_text(aperio(TILE.labels))
    tif(tmp_path / "TCGA-AA_1.tif", TILE.image)
    # Beside each TIFF lies the slide that it was cut from.
    (tmp_path / "TCGA-AA_1.svs").write_bytes(b"not looked at")
    pytest.importorskip("openslide")
    write_slide(tmp_path / "slide.tif", TILE.image, levels=1).rename(tmp_path / "TCGA-AA_2.SVS")
    tiles = open_tiles(tmp_path)
    assert [tile.image.name for tile in tiles] == ["TCGA-AA_1.tif", "TCGA-AA_2.SVS"]
    for tile in tiles:
        assert np.array_equal(tile.read().image, TILE.image)
        assert same_nuclei(tile.read().labels, TILE.labels)


def test_aperio_files_with_broken_vertices_or_entities_are_named(tmp_path: Path) -> None:
    png(tmp_path / "a.png", TILE.image)
    text = aperio((TILE.labels == 1).astype(np.int32))
    for broken, told in (
        (text.replace('X="', 'W="', 1), "region 1: a vertex without two numbers"),
        (text.replace('Y="', 'Y="x', 1), "region 1: a vertex without two numbers"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + text, "a document type in the XML"),
        (text[:-30], "cannot be read"),
    ):
        (tmp_path / "a.xml").write_text(broken)
        with pytest.raises(NucloraError, match=rf"a\.xml: {told}"):
            open_tiles(tmp_path)[0].read()
    # Outlines that a slip of the mouse left have no area, and do no harm.
    (tmp_path / "a.xml").write_text(text.replace("<Regions>", '<Regions><Region Id="9"><Vertices/></Region>'))
    assert len(np.unique(open_tiles(tmp_path)[0].read().labels)) == 2


def test_other_xml_is_not_taken_for_aperios(tmp_path: Path) -> None:
    png(tmp_path / "a.png", TILE.image)
    (tmp_path / "a.xml").write_text("<ASAP_Annotations><Annotations></Annotations></ASAP_Annotations>")
    with pytest.raises(NucloraError, match="no labelled tiles found"):
        open_tiles(tmp_path)


def test_files_of_new_matlab_are_refused_by_name(tmp_path: Path) -> None:
    png(tmp_path / "Images" / "a.png", TILE.image)
    (tmp_path / "Labels").mkdir()
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(500)
    (tmp_path / "Labels" / "a.mat").write_bytes(head)
    with pytest.raises(
        NucloraError, match=r"a\.mat: a file of MATLAB 7\.3 \(HDF5\).*save it in MATLAB with save\(.*-v7"
    ):
        open_tiles(tmp_path)[0].read()


def test_a_damaged_matlab_file_is_named_and_hides_no_data_set(tmp_path: Path) -> None:
    png(tmp_path / "Images" / "a.png", TILE.image)
    (tmp_path / "Labels").mkdir()
    path = tmp_path / "Labels" / "a.mat"
    savemat(path, {"inst_map": TILE.labels})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NucloraError, match=r"a\.mat: cannot be read \(.*\); the file is damaged"):
        open_tiles(tmp_path)[0].read()
    assert [fault.path for fault in check_data(tmp_path).faults] == [str(path)]
    # What belongs to no image says nothing.
    path.rename(path.with_name("b.mat"))
    with pytest.raises(NucloraError, match="no labelled tiles found"):
        open_tiles(tmp_path)


def test_a_damaged_table_of_folds_is_named(tmp_path: Path) -> None:
    WRITERS["lizard"](tmp_path, [TILE, known(2)])
    path = tmp_path / "Lizard_Labels" / "info.csv"
    # A quote that is not closed, in a table so long that the rest is no cell.
    path.write_text(path.read_text() + '"glas_2,glas,1\n' + "crag_3,crag,2\n" * 10_000)
    with pytest.raises(NucloraError, match=r"info\.csv: cannot be read \(field larger .*; the file is damaged"):
        open_tiles(tmp_path)
    assert [fault.path for fault in check_data(tmp_path).faults] == [str(path)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"other": np.eye(3)}, "no variable inst_map"),
        ({"inst_map": TILE.labels + 0.5}, "labels are float64, not whole numbers"),
        ({"inst_map": np.where(TILE.labels > 0, np.nan, 0)}, "labels are float64"),
        ({"inst_map": -TILE.labels}, "negative id"),
        ({"inst_map": np.zeros((48, 64, 3))}, "an RGB image, not a label map"),
        ({"inst_map": "text"}, "labels are <U4"),
    ],
)
def test_bad_instance_maps_are_named(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    png(tmp_path / "a.png", TILE.image)
    savemat(tmp_path / "a.mat", content)
    with pytest.raises(NucloraError, match=rf"a\.mat: {told}"):
        open_tiles(tmp_path, "matlab")[0].read()


def test_equal_names_in_train_and_test_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for part, seed in (("train", 1), ("test", 2)):
        png(tmp_path / part / "Images" / "image_00.png", known(seed).image)
        (tmp_path / part / "Labels").mkdir()
        savemat(tmp_path / part / "Labels" / "image_00.mat", {"inst_map": known(seed).labels})
    tiles = open_tiles(tmp_path)
    np.testing.assert_array_equal(tiles["train/image_00"].read().labels, known(1).labels)
    np.testing.assert_array_equal(tiles["test/image_00"].read().labels, known(2).labels)
    assert tiles[0].microns_per_pixel is None  # CPM mixes 20x and 40x
    png(tmp_path / "train" / "Images" / "more" / "image_00.png", known(3).image)
    tif(tmp_path / "train" / "Images" / "image_00.tif", known(3).image)
    with pytest.raises(NucloraError, match=r"one of 3 images \(.*\) of image_00\.mat"):
        open_tiles(tmp_path)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_zipped_on_a_mac_belong_to_their_images(forms: tuple[str, str], tmp_path: Path) -> None:
    image, label = (unicodedata.normalize(form, "ü") for form in forms)
    tif(tmp_path / "stardist" / "images" / f"{image}.tif", known(1).image)
    tif(tmp_path / "stardist" / "masks" / f"{label}.tif", known(1).labels)
    assert open_tiles(tmp_path / "stardist").names == [image]
    # The folders tell equal stems apart, whatever their names are encoded in.
    for seed, part in enumerate(("k{}ln", "t{}r")):
        path = tmp_path / "matlab" / part.format(label) / "Labels" / f"{label}.mat"
        path.parent.mkdir(parents=True)
        savemat(path, {"inst_map": known(seed).labels})
        png(tmp_path / "matlab" / part.format(image) / "Images" / f"{image}.png", known(seed).image)
    tiles = open_tiles(tmp_path / "matlab")
    for seed, part in enumerate(("k{}ln", "t{}r")):
        np.testing.assert_array_equal(tiles[f"{part.format(image)}/{image}"].read().labels, known(seed).labels)


def test_folders_of_organs_tell_equal_names_apart(tmp_path: Path) -> None:
    for organ, seed in (("liver", 1), ("kidney", 2)):
        png(tmp_path / "images" / organ / "1.png", known(seed).image)
        (tmp_path / "ann" / organ).mkdir(parents=True)
        savemat(tmp_path / "ann" / organ / "1.mat", {"inst_map": known(seed).labels})
    tiles = open_tiles(tmp_path)
    assert tiles.names == ["kidney/1", "liver/1"]
    np.testing.assert_array_equal(tiles["liver/1"].read().labels, known(1).labels)
    np.testing.assert_array_equal(tiles["kidney/1"].read().labels, known(2).labels)
    (tmp_path / "ann" / "liver").rename(tmp_path / "ann" / "lung")
    with pytest.raises(NucloraError, match=r"one of 2 images \(kidney/1\.png, liver/1\.png\) of 1\.mat"):
        open_tiles(tmp_path)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("liver/images/1.png", "kidney/labels/1.mat"),
        ("fold1/1.png", "fold2/1.mat"),
        ("Fold 1/1.png", "Fold 2/1.mat"),
        ("stage1_train/1.png", "stage1_test/1.mat"),
        ("train_1/1.png", "valid/1.mat"),
        ("images/train/fold1/1.png", "labels/test/fold1/1.mat"),
    ],
)
def test_files_of_other_groups_and_parts_are_no_pair(image: str, labels: str, tmp_path: Path) -> None:
    for organ in ("liver", "kidney"):
        png(tmp_path / organ / "images" / "2.png", TILE.image)
        (tmp_path / organ / "labels").mkdir()
        savemat(tmp_path / organ / "labels" / "2.mat", {"inst_map": TILE.labels})
    png(tmp_path / image, TILE.image)
    (tmp_path / labels).parent.mkdir(parents=True, exist_ok=True)
    savemat(tmp_path / labels, {"inst_map": TILE.labels})
    told = sorted(fault.reason for fault in list_tiles(tmp_path, "matlab").faults)
    assert told == ["no MATLAB file for this image", "no image for this MATLAB file"]


@pytest.mark.parametrize(
    ("image", "labels", "group"),
    [
        ("raw/liver/1.png", "mat/1.mat", "raw"),
        ("raw/images/1.png", "truth/labels/1.mat", "raw"),
        ("train2017/1.png", "training/1.mat", "all"),
        ("Fold 1/images/1.png", "Fold 1/labels/1.mat", "all"),
        ("images/fold1/1.png", "labels/fold01/1.mat", "all"),
        ("Stage1 Train/1.png", "train/1.mat", "all"),
        ("images/1.png", "labels/liver/1.mat", "all"),
        ("liver/images/1.png", "Labels/1.mat", "liver"),
    ],
)
def test_files_in_folders_of_their_own_are_a_pair(image: str, labels: str, group: str, tmp_path: Path) -> None:
    png(tmp_path / image, TILE.image)
    (tmp_path / labels).parent.mkdir(parents=True, exist_ok=True)
    savemat(tmp_path / labels, {"inst_map": TILE.labels})
    savemat(tmp_path / "a_first.mat", {"parameters": 1})
    listing = list_tiles(tmp_path)
    assert [tile.group for tile in listing.tiles] == [group]
    assert [Path(fault.path or "").name for fault in listing.faults] == ["a_first.mat"]


def test_a_stray_file_parts_no_others(tmp_path: Path) -> None:
    root = tmp_path / "images" / "x"
    (root / "annotations").mkdir(parents=True)
    for stem in "ab":
        png(root / "images" / f"{stem}.png", TILE.image)
        savemat(root / "annotations" / f"{stem}.mat", {"inst_map": TILE.labels})
    png(root / "annotations" / "preview.png", TILE.image)
    savemat(root / "images" / "old.mat", {"inst_map": TILE.labels})
    listing = list_tiles(root)
    assert sorted(tile.name for tile in listing.tiles) == ["a", "b"]
    assert sorted(Path(fault.path or "").name for fault in listing.faults) == ["old.mat", "preview.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("suffix", [".json", ".xml", ".mat", ".geojson"])
def test_pipes_are_named_and_not_waited_for(suffix: str, tmp_path: Path) -> None:
    png(tmp_path / "a.png", TILE.image)
    os.mkfifo(tmp_path / f"a{suffix}")
    with pytest.raises(NucloraError, match=rf"a\{suffix}: a pipe, not a file"):
        list_tiles(tmp_path)


def test_of_cellposes_outputs_the_masks_alone_are_labels(tmp_path: Path) -> None:
    labels = TILE.labels.astype(np.uint16)
    png(tmp_path / "a_img.png", TILE.image)
    png(tmp_path / "a_img_cp_masks.png", labels)
    for name in ("flows_cp_masks", "dP_cp_masks", "flows_0", "cp_cellprob"):
        tif(tmp_path / f"a_img_{name}.tif", TILE.image[..., 0])
    for name in ("outlines_cp_masks", "cp_output_cp_masks", "outlines"):
        png(tmp_path / f"a_img_{name}.png", TILE.image)
    tiles = open_tiles(tmp_path)
    assert len(tiles) == 1
    assert np.array_equal(tiles[0].read().labels, TILE.labels)


def test_cellposes_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "opened",)

    png(tmp_path / "a.png", TILE.image)
    np.save(tmp_path / "a_seg.npy", np.array({"masks": Bomb()}), allow_pickle=True)
    with pytest.raises(NucloraError, match=r"a_seg\.npy: a pickle.*not read; save the masks in Cellpose with File"):
        open_tiles(tmp_path)
    assert [fault.path for fault in check_data(tmp_path).faults] == [str(tmp_path / "a_seg.npy")]
    (tmp_path / "folder" / "labels").mkdir(parents=True)
    png(tmp_path / "folder" / "images" / "a.png", TILE.image)
    (tmp_path / "a_seg.npy").rename(tmp_path / "folder" / "labels" / "a.npy")
    with pytest.raises(NucloraError, match=r"a\.npy: a pickle of Python objects.*numpy\.save"):
        open_tiles(tmp_path / "folder")[0].read()
    assert not (tmp_path / "opened").exists()


def test_bad_pannuke_arrays_are_named(tmp_path: Path) -> None:
    WRITERS["pannuke"](tmp_path, [known(seed) for seed in range(4)])
    place = tmp_path / "Fold 1" / "images" / "fold1"
    masks = tmp_path / "Fold 1" / "masks" / "fold1" / "masks.npy"
    good = {path: path.read_bytes() for path in (masks, place / "images.npy", place / "types.npy")}
    cases: list[tuple[Path, Any, str]] = [
        (masks, np.zeros((2, 48, 64, 5)), r"masks\.npy: an array of shape \(2, 48, 64, 5\) where the images ask for"),
        (place / "images.npy", np.zeros((2, 48, 64)), r"images\.npy: an array of shape .* not \(tiles, height"),
        (place / "types.npy", np.array(["Liver"]), r"types\.npy: 1 tissues for 2 images"),
        (place / "types.npy", np.array(["Liver", None], object), r"types\.npy: a pickle of Python objects"),
        (masks, np.full((2, 48, 64, 6), 0.5), r"masks\.npy: tile fold1/0000: masks that are not ids"),
        (
            place / "images.npy",
            np.full((2, 48, 64, 3), 256.0),
            r"images\.npy: tile fold1/0000: pixel values that are not whole",
        ),
        (
            place / "images.npy",
            np.full((2, 48, 64, 3), np.nan),
            r"images\.npy: tile fold1/0000: pixel values that are not whole",
        ),
    ]
    for path, values, told in cases:
        np.save(path, values, allow_pickle=True)
        with pytest.raises(NucloraError, match=told):
            [tile.read() for tile in open_tiles(tmp_path)]
        for file, content in good.items():
            file.write_bytes(content)
    masks.unlink()
    with pytest.raises(NucloraError, match=r"images\.npy: no masks\.npy for this image; add the masks\.npy"):
        open_tiles(tmp_path)


@pytest.mark.parametrize("folders", [("Part 1", "Part 2"), ("pannuke_a", "pannuke_b")])
def test_pannukes_folds_in_folders_of_any_name(folders: tuple[str, str], tmp_path: Path) -> None:
    samples = [known(seed) for seed in range(3)]
    WRITERS["pannuke"](tmp_path / "as published", samples)
    for fold, name in enumerate(folders, start=1):
        (tmp_path / "data" / name).mkdir(parents=True)
        source = tmp_path / "as published" / f"Fold {fold}"
        for kind in ("images", "masks"):
            (source / kind / f"fold{fold}").rename(tmp_path / "data" / name / kind.capitalize())
    tiles = open_tiles(tmp_path / "data")
    expected = [samples[0], samples[2], samples[1]]
    assert [tile.name for tile in tiles] == ["fold1/0000", "fold1/0001", "fold2/0000"]
    assert [tile.fold for tile in tiles] == ([1, 1, 2] if folders[0] == "Part 1" else [None] * 3)
    for tile, sample in zip(tiles, expected, strict=True):
        assert np.array_equal(tile.read().image, sample.image)
        assert same_nuclei(tile.read().labels, sample.labels)


def test_pannukes_fold_is_that_of_the_folder_however_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["pannuke"](tmp_path / "all", [known(1), known(2)])
    (tmp_path / "fold2").mkdir()
    for array in (tmp_path / "all" / "Fold 1").rglob("*.npy"):
        shutil.copy(array, tmp_path / "fold2")
    named = open_tiles(tmp_path / "fold2")
    monkeypatch.chdir(tmp_path / "fold2")
    here = open_tiles(Path())
    assert here.names == named.names == ["fold2/0000"]


def test_pannukes_folds_counted_from_0_are_not_the_published_ones(tmp_path: Path) -> None:
    WRITERS["pannuke"](tmp_path / "data", [known(seed) for seed in range(3)])
    for fold in (1, 2):
        for kind in ("images", "masks"):
            place = tmp_path / "data" / f"Fold {fold}" / kind / f"fold{fold}"
            place.rename(place.with_name(f"fold{fold - 1}"))
    tiles = open_tiles(tmp_path / "data")
    assert [(tile.name, tile.fold) for tile in tiles] == [
        ("fold0/0000", None),
        ("fold0/0001", None),
        ("fold1/0000", None),
    ]
    convert_data(tiles, tmp_path / "converted", "folder")
    assert not (tmp_path / "converted" / "folds.csv").exists()


def test_pannukes_ids_may_be_shared_by_classes(tmp_path: Path) -> None:
    masks = np.zeros((1, *SHAPE, 6), np.uint16)
    masks[0, 2:8, 2:8, 0] = 1
    masks[0, 20:30, 20:30, 1] = 1
    masks[0, 6:12, 6:12, 4] = 900
    np.save(tmp_path / "images.npy", TILE.image[None])
    np.save(tmp_path / "masks.npy", masks)
    sample = open_tiles(tmp_path)[0].read()
    assert np.bincount(sample.labels.ravel())[1:].tolist() == [36, 100, 32]
    np.testing.assert_array_equal(sample.image, TILE.image)


def test_folders_of_masks_that_lack_something_are_named(tmp_path: Path) -> None:
    WRITERS["dsb2018"](tmp_path, [known(1), known(2)])
    png(tmp_path / "stage1_train" / "02ab" / "images" / "02ab.png", TILE.image)
    with pytest.raises(NucloraError, match=r"02ab: no folder 'masks'; add it, or remove"):
        open_tiles(tmp_path)
    png(tmp_path / "stage1_train" / "02ab" / "images" / "more.png", TILE.image)
    with pytest.raises(NucloraError, match="images: 2 images where one is expected"):
        open_tiles(tmp_path)


def test_tiles_of_one_name_are_told(tmp_path: Path) -> None:
    for folder in ("img", "images"):
        png(tmp_path / folder / "a.png", TILE.image)
        png(tmp_path / folder / "a_masks.png", TILE.labels.astype(np.uint8))
    with pytest.raises(NucloraError, match=r"another tile has the name 'a'; rename"):
        open_tiles(tmp_path)
    path = coco(tmp_path / "coco", [])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": [*content["images"], {**content["images"][0], "id": 2}]}))
    with pytest.raises(NucloraError, match=r"another tile has the name 'a'"):
        open_tiles(tmp_path / "coco")


def test_two_formats_at_once_must_be_chosen_from(tmp_path: Path) -> None:
    for layout in ("cellpose", "monuseg"):
        WRITERS[layout](tmp_path, [TILE])
    with pytest.raises(NucloraError, match="looks like monuseg and cellpose; choose one with --format"):
        open_tiles(tmp_path)


def test_a_single_region_may_be_ambiguous(tmp_path: Path) -> None:
    WRITERS["monuseg"](tmp_path, [TILE])
    path = next((tmp_path / "Annotations").iterdir())
    attribute = '<Attributes><Attribute Name="Ambiguous" Id="0" Value=""/></Attributes>'
    path.write_text(path.read_text().replace("<Attributes/>", attribute, 1))
    sample = open_tiles(tmp_path)[0].read()
    assert sample.ignore.any()
    assert len(np.unique(sample.labels)) == len(np.unique(TILE.labels)) - 1


def test_parts_of_a_split_are_not_mixed(tmp_path: Path) -> None:
    for part, images, labels in (("Train", "12", "2"), ("Test", "2", "12")):
        for stem in images:
            tif(tmp_path / part / "Tissue Images" / f"{stem}.tif", TILE.image)
        (tmp_path / part / "Annotations").mkdir()
        for stem in labels:
            (tmp_path / part / "Annotations" / f"{stem}.xml").write_text(aperio(TILE.labels))
    listing = list_tiles(tmp_path)
    assert sorted(tile.name for tile in listing.tiles) == ["Test/2", "Train/2"]
    assert sorted(fault.reason for fault in listing.faults) == [
        "no XML file for this image",
        "no image for this XML file",
    ]


def coco_parts(root: Path) -> list[Path]:
    """Two folders of a COCO data set with an image each; their JSON files."""
    paths = []
    for part in ("train", "valid"):
        png(root / part / f"{part}.png", TILE.image)
        image = {"id": 1, "file_name": f"{part}.png", "height": SHAPE[0], "width": SHAPE[1]}
        paths.append(root / part / "_annotations.coco.json")
        paths[-1].write_text(json.dumps({"images": [image], "annotations": []}))
    return paths


def test_every_json_file_of_coco_counts(tmp_path: Path) -> None:
    train, valid = coco_parts(tmp_path)
    content = json.loads(train.read_text())
    train.write_text(json.dumps({"dataset": "mine", **content}))
    valid.rename(valid.with_name("instances_default.json"))
    (tmp_path / "valid" / "captions_default.json").write_text(json.dumps({"info": {}, "images": [{}]}))
    (tmp_path / "settings.json").write_text("[]")
    assert open_tiles(tmp_path).names == ["train/train", "valid/valid"]
    train.write_text("")
    assert [fault.path for fault in list_tiles(tmp_path).faults] == [train]


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    train, _ = coco_parts(tmp_path)
    content = json.loads(train.read_text())
    train.write_text(json.dumps(content | {"images": 2 * content["images"]}))
    with pytest.raises(NucloraError, match=r"_annotations\.coco\.json: two images of the id 1; export it again"):
        open_tiles(tmp_path)


def test_a_coordinate_beyond_all_bounds_is_named(tmp_path: Path) -> None:
    train, _ = coco_parts(tmp_path)
    content = json.loads(train.read_text())
    content["annotations"] = [{"id": 3, "image_id": 1, "segmentation": [[10**400, 0, 1, 1, 2, 0]]}]
    train.write_text(json.dumps(content))
    with pytest.raises(NucloraError, match=r"_annotations\.coco\.json: annotation 3 of train/train"):
        open_tiles(tmp_path)["train/train"].read()
    with pytest.raises(ValueError, match="too large"):
        fill([[(10**400, 0), (1, 1), (2, 0)]], (20, 20))


def test_parts_that_lack_a_folder_are_named(tmp_path: Path) -> None:
    WRITERS["stardist"](tmp_path / "stardist", [TILE, TILE])
    (tmp_path / "stardist" / "test" / "masks").rename(tmp_path / "stardist" / "test" / "mask")
    with pytest.raises(NucloraError, match=r"test: no folder 'masks'; add it, or remove test"):
        open_tiles(tmp_path / "stardist")
    WRITERS["dsb2018"](tmp_path / "dsb", [TILE, TILE])
    first, second = sorted((tmp_path / "dsb" / "stage1_train").iterdir())
    mask = next((first / "masks").iterdir())
    Image.open(mask).save(mask.with_suffix(".bmp"))
    shutil.rmtree(second / "images")
    found = {fault.path: fault.reason for fault in list_tiles(tmp_path / "dsb").faults}
    assert found == {
        mask.with_suffix(".bmp"): "a mask of a type that is not read",
        second / "images": "0 images where one is expected",
    }


def test_tissues_as_bytes_are_text(tmp_path: Path) -> None:
    WRITERS["pannuke"](tmp_path, [known(seed) for seed in range(4)])
    types = tmp_path / "Fold 1" / "images" / "fold1" / "types.npy"
    np.save(types, np.array([b"Breast", b"Liver"]))
    assert [tile.group for tile in open_tiles(tmp_path) if tile.fold == 1] == ["Breast", "Liver"]
