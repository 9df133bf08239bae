"""COCO JSON of nuclei, read again by the reader of labelled tiles."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from nuclora.data import open_tiles
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.io.coco import nucleus_annotations, write_coco


def test_what_is_written_is_read_as_the_same_label_map(tmp_path):
    sample = synthesize_tile(128, 3, ORGANS[0])
    parts, count = np.unique(sample.labels, return_inverse=True)
    labels = count.reshape(sample.labels.shape).astype(np.int32)
    scores = np.linspace(0, 1, len(parts) - 1, dtype=np.float32)
    (tmp_path / "images").mkdir()
    Image.fromarray(sample.image).save(tmp_path / "images" / "tile.png")
    write_coco(tmp_path / "tile.coco.json", "tile.png", labels.shape, nucleus_annotations(labels, scores))
    (tile,) = open_tiles(tmp_path)
    read = tile.read().labels
    # Ids may change, shapes must not.
    assert read.max() == labels.max()
    pairs = np.unique(np.stack([labels.ravel(), read.ravel()]), axis=1)
    assert pairs.shape[1] == labels.max() + 1


def test_boxes_areas_and_scores_are_those_of_the_nuclei(tmp_path):
    labels = np.zeros((20, 30), np.int32)
    labels[2:6, 10:20] = 1
    labels[10:15, 0:5] = 2
    write_coco(tmp_path / "a.json", "a.png", labels.shape, nucleus_annotations(labels, np.float32([0.25, 0.75])))
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["images"] == [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}]
    assert [one["bbox"] for one in written["annotations"]] == [[10, 2, 10, 4], [0, 10, 5, 5]]
    assert [one["area"] for one in written["annotations"]] == [40, 25]
    assert [one["score"] for one in written["annotations"]] == [0.25, 0.75]
    assert {one["category_id"] for one in written["annotations"]} == {written["categories"][0]["id"]}


def test_without_nuclei_the_file_is_valid(tmp_path):
    write_coco(
        tmp_path / "a.json", "a.png", (4, 4), nucleus_annotations(np.zeros((4, 4), np.int32), np.empty(0, np.float32))
    )
    assert json.loads((tmp_path / "a.json").read_text())["annotations"] == []
