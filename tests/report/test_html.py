from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image
from report_fakes import fake_run, fake_training, synthetic_tiles
from typer.testing import CliRunner

from nuclora.data import open_tiles
from nuclora.data.folds import ALL_TILES
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.report.analysis import ranked
from nuclora.report.html import write_report
from nuclora.report.plates import plates
from nuclora.report.summary import summarise_run
from nuclora.run import Run

CHARTS = {
    "final-by-fold", "zero-shot-and-fine-tuned", "validation-by-step", "training-loss", "by-organ", "error-types",
}  # fmt: skip
OF_TILES = {"sample-tile", "aji-by-density", "recall-by-size"}


class Page(HTMLParser):
    """What of a page could ask for something outside it, its text, and its table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._skip = self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._skip = tag == "style"
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._skip = False
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._skip:
            assert not re.search(r"@import|url\(", data)
            return
        self.words.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_needs_nothing_outside_itself(page: str) -> None:
    parsed = Page(page)
    assert not set(parsed.tags) & {"script", "iframe", "object", "embed", "form"}
    assert all(reference.startswith(("data:", "#")) for reference in parsed.references)
    assert sum(reference.startswith("data:image/") for reference in parsed.references) >= 12
    anchors = {reference[1:] for reference in parsed.references if reference.startswith("#")}
    assert anchors
    assert all(f'id="{anchor}"' in page for anchor in anchors)


def test_names_of_organs_cannot_become_markup(page: str) -> None:
    assert "mouse &lt;b&gt;$spleen$ &amp; co" in page
    assert Page(page).tags.count("b") == page.count("<figcaption><b>")


def test_every_figure_is_there_as_png_and_svg(run: Run, page: str) -> None:
    folder = run.report_folder / "figures"
    pictures = {f"fold-{fold}-automatic" for fold in (1, 2, 3)}
    assert {path.stem for path in folder.glob("*.png")} == CHARTS | OF_TILES | pictures
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 1350
        assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert len(re.findall("<figure", page)) == len(CHARTS | OF_TILES | pictures)


def test_pictures_in_the_page_decode(page: str) -> None:
    pictures = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 4
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        image.load()
        assert image.width == 1350


def test_the_tables_show_the_summary(run: Run, page: str) -> None:
    rows = [[" ".join(cell.split()) for cell in row] for row in Page(page).rows]
    summary = summarise_run(run)
    for entry in summary["results"]:
        label = entry["protocol"] + (
            "upper bound: prompts from the truth" if entry["protocol"].startswith("oracle") else ""
        )
        (row,) = [row for row in rows if row[:2] == [entry["stage"], label] and "±" in row[3]]
        assert row[2] == "12"
        for cell, metric in zip(row[3:6], ("dice", "aji", "pq"), strict=True):
            low, high = entry["interval"][metric]
            assert cell == f"{entry['mean'][metric]:.3f} ± {entry['deviation'][metric]:.3f}{low:.3f} to {high:.3f}"
        (by_fold,) = [row for row in rows if row[:3] == [entry["stage"], entry["protocol"], "Dice"]]
        assert by_fold[3:] == [
            *(f"{fold['dice']:.4f}" for fold in entry["folds"]),
            f"{entry['mean']['dice']:.4f}",
            f"{entry['pooled']['dice']:.4f}",
        ]
    study = ["The study: SAM ViT-H + LoRA", "unstated", "0.823", "0.620", "0.572"]
    assert any(row[:5] == study for row in rows)
    assert ["AJI", "0.5886", "0.5944", "0.6808", "0.6270", "0.6364", "0.6197"] in rows


def test_the_page_tells_what_the_run_was(run: Run, page: str) -> None:
    text = Page(page).text
    assert "this recipe validates on the test tiles" in text
    assert "12 tiles, not those: its numbers and the published ones do not compare" in text
    assert run.recipe.sha256 in text
    assert run.info["folds_sha256"] in text
    assert "taken up 2 times" in text
    assert "learning_rate: 0.0001" in text
    # MobileSAM with the paper's adapter: LoRA on the attention of ten TinyViT blocks, two parts in full.
    assert "4,058,340" in text
    assert "6,220" in text


def test_inner_validation_is_told_apart(tiles: TileSet, tmp_path: Path) -> None:
    settings = {"recipe": "smoke", "base": "lite_medsam", "protocols": ["automatic"]}
    run = fake_run(tmp_path / "run", tiles, k=2, trained=(1,), **settings)
    text = Page(write_report(run).read_text("utf-8")).text
    assert "inner validation tiles" in text
    assert "validates on the test tiles" not in text


def test_a_dense_run_tells_of_its_scores_and_thresholds(dense_run: Run, tmp_path: Path) -> None:
    page = write_report(dense_run, tmp_path / "out").read_text("utf-8")
    parsed = Page(page)
    names = {path.stem for path in (tmp_path / "out" / "figures").glob("*.svg")}
    assert names == CHARTS | OF_TILES | {"score-reliability"} | {f"fold-{fold}-automatic" for fold in (1, 2, 3)}
    assert "#scores" in parsed.references
    assert 'id="scores"' in page
    summary = summarise_run(dense_run)
    (trust,) = [entry["calibration"] for entry in summary["results"] if "calibration" in entry]
    assert f"nuclei of like score are {trust['error']:.3f} apart" in " ".join(parsed.text.split())
    assert "the IoU with the truth that is to be expected of it" in parsed.text
    rows = [[" ".join(cell.split()) for cell in row] for row in parsed.rows]
    for cut in trust["cuts"][::2]:
        shares = [f"{100 * cut[key]:.1f} %" for key in ("kept", "precision", "recall")]
        assert [f"{cut['score']:.1f}", f"{cut['nuclei']:,}", *shares, f"{cut['f1']:.3f}"] in rows
    start = rows.index(["Fold", "foreground", "smooth", "valley", "core", "min_size"])
    assert rows[start + 1 : start + 4] == [
        [f"{n}", f"{0.5 + n / 100:g}", "3.5", "0.75", "0.4", "30"] for n in (1, 2, 3)
    ]
    assert "tuned on the same tiles" in parsed.text
    assert any(row[0] == "Dense decoder" and row[2] == "yes" for row in rows)
    assert any(row[0] == "All: base, LoRA and dense decoder" for row in rows)


def test_captions_name_the_tiles_that_are_scored(dense_run: Run, tiles: TileSet) -> None:
    summary = summarise_run(dense_run)
    told = {}
    for scored, words in (("test", "test tiles"), ("inner", "inner validation tiles")):
        shown = list(plates(dense_run, summary | {"scored": scored}, tiles))
        told[scored] = {one.name: one.caption for one in shown if one.section != "training"}
        assert sum(words in caption for caption in told[scored].values()) == 8
    assert not any("test tile" in caption for caption in told["inner"].values())
    assert "The diamond is the mean over tiles." in told["test"]["zero-shot-and-fine-tuned"]
    assert "by equal shares of the nuclei" in told["test"]["recall-by-size"]
    # Whole names, which the titles over the pictures may shorten.
    named = [name for name in dense_run.folds.test(1) if name in told["test"]["fold-1-automatic"]]
    assert len(named) == 3


def test_nothing_is_said_of_the_errors_without_true_nuclei(run: Run) -> None:
    summary = summarise_run(run)

    def drawn() -> list[str]:
        found = [one.draw() for one in plates(run, summary, None) if one.name == "error-types"]
        return [label.get_text() for figure in found for label in figure.axes[0].get_yticklabels()]

    assert len(drawn()) == 6
    summary["results"][0]["errors"] = dict.fromkeys(summary["results"][0]["errors"], 0)
    assert "zero-shot, oracle-box" not in drawn()
    assert len(drawn()) == 5
    for entry in summary["results"]:
        entry["errors"] = dict.fromkeys(entry["errors"], 0)
    assert drawn() == []


def test_odd_runs_have_their_page(dense_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nuclora.report.html.save_plate", lambda plate, folder: "data:,")
    try:
        folder = Path(shutil.copytree(dense_run.folder, tmp_path / "run\udcff"))
    except OSError:
        pytest.skip("this file system has no such names")
    info = json.loads((folder / "run.json").read_text())
    for session in info["sessions"]:
        del session["packages"]
    (folder / "run.json").write_text(json.dumps(info))
    card = json.loads((folder / "fold-2" / "adapter" / "nuclora.json").read_text())
    card["thresholds"] = {"agreement": 0.55, "foreground": 0.4}
    (folder / "fold-2" / "adapter" / "nuclora.json").write_text(json.dumps(card))
    log = folder / "fold-3" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"tiles": 16', '"tiles": 15'))
    # Folds of one tile.
    for path in (*folder.glob("fold-*/oracle-box/scores.csv"), *folder.glob("zero-shot/oracle-box/scores.csv")):
        rows = {line.split(",")[2]: line for line in path.read_text().splitlines()}
        path.write_text("".join(f"{line}\n" for line in rows.values()))
    parsed = Page(write_report(Run(folder)).read_text("utf-8"))
    assert "run?" in parsed.text
    rows = [[" ".join(cell.split()) for cell in row] for row in parsed.rows]
    start = rows.index(["Fold", "foreground", "smooth", "valley", "core", "min_size", "agreement"])
    assert rows[start + 2] == ["2", "0.4", "–", "–", "–", "–", "0.55"]
    assert "Validation on 15 to 16 inner validation tiles" in parsed.text
    (row,) = [row for row in rows if row[0] == "fine-tuned" and "oracle-box" in row[1] and "±" in row[3]]
    assert [cell[-1] for cell in row[3:6]] == ["–"] * 3
    assert row[-1].endswith("–")


def test_training_curves_name_their_protocol(dense_run: Run, page: str) -> None:
    (plate,) = [one for one in plates(dense_run, summarise_run(dense_run), None) if one.name == "validation-by-step"]
    assert "16 inner validation tiles with the protocol automatic" in plate.caption
    assert plate.draw().axes[0].get_ylabel() == "validation, automatic"
    assert "16 of the fold's test tiles with the protocol oracle-box" in Page(page).text
    assert "How sure it is of a nucleus" not in page


def test_a_partial_run_says_so(partial_run: Run, tmp_path: Path) -> None:
    page = write_report(partial_run, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    text = Page(page.read_text("utf-8")).text
    assert "This run is not finished. Folds trained so far: 2, of 3." in text
    assert "oracle-box, fine-tuned: 4 of 12 test tiles, 4 of fold 2." in text
    assert "automatic, zero-shot: 3 of 12 test tiles, 1 of each fold; the recipe asks for at most 1 a fold." in text
    names = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert names == CHARTS | OF_TILES | {"fold-2-oracle-box", "fold-2-automatic"}


def test_a_run_that_has_only_begun(tiles: TileSet, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", tiles, k=3, trained=(), protocols=["automatic"])
    shutil.rmtree(run.zero_shot("automatic").folder)
    page = write_report(run).read_text("utf-8")
    text = Page(page).text
    assert "The same command goes on with it." in text
    assert "Folds trained so far: none, of 3." in text
    assert "Nothing is evaluated yet" in text


def test_a_run_of_all_tiles(tiles: TileSet, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", tiles, k=3, trained=(), protocols=["automatic"], recipe="nuclora")
    shutil.rmtree(run.zero_shot("automatic").folder)
    fake_training(run, ALL_TILES, 40)
    text = write_report(run).read_text("utf-8")
    page = Page(text)
    assert "<code>nuclora cv</code>" in text
    assert "not finished" not in page.text
    assert "trained on all tiles, so none is left that could say how good it is" in page.text
    assert "test tiles were read" not in page.text
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    assert [row[:3] for row in rows if row[0] == "all tiles"] == [["all tiles", "10", "–"], ["all tiles", "0.5", "3.5"]]
    assert {path.stem for path in (run.report_folder / "figures").glob("*.png")} == {
        "training-loss",
        "validation-by-step",
    }


def test_zero_shot_alone(tiles: TileSet, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", tiles, k=3, trained=(), protocols=["automatic"])
    text = Page(write_report(run).read_text("utf-8")).text
    assert "No fine-tuned adapter is evaluated yet" in text
    assert {path.stem for path in (run.report_folder / "figures").glob("*.png")} == {"error-types"}


def test_tiles_that_have_moved(tmp_path: Path) -> None:
    tiles = synthetic_tiles(tmp_path / "data", {"a": 3, "b": 3})
    run = fake_run(tmp_path / "run", tiles, k=2, trained=(1, 2), protocols=["automatic"], steps=5)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    text = Page(write_report(run).read_text("utf-8")).text
    assert "could not be opened" in text
    assert {path.stem for path in (run.report_folder / "figures").glob("*.png")} == CHARTS

    from nuclora.cli.main import app

    result = CliRunner().invoke(app, ["report", str(run.folder), "--data", str(tmp_path / "moved"), "--json"])
    assert result.exit_code == 0, result.output
    assert "could not be opened" not in (run.report_folder / "report.html").read_text("utf-8")
    assert (run.report_folder / "figures" / "sample-tile.svg").exists()

    run.info["data"] |= {"root": str(tmp_path / "moved"), "sha256": "0" * 64}
    with pytest.raises(NucloraError, match=r"run: made from other tiles than those in .*moved are now"):
        write_report(run, data=open_tiles(tmp_path / "moved"))
    assert "made from other tiles than those in" in Page(write_report(run).read_text("utf-8")).text
    del run.info["data"]["sha256"]

    shutil.rmtree(tmp_path / "moved" / "b")
    with pytest.raises(NucloraError, match="does not match the data"):
        write_report(run, data=synthetic_tiles(tmp_path / "moved", {"a": 3}))


def test_tiles_without_nuclei_are_counted_and_no_example(tmp_path: Path) -> None:
    tiles = synthetic_tiles(tmp_path / "tiles", {"human liver": 6, "human spleen": 6})
    for tile in list(tiles)[:2]:
        label = tmp_path / "tiles" / tile.group / "label masks modify" / f"{tile.name.rpartition('/')[2]}.tif"
        tifffile.imwrite(label, np.zeros((96, 96), np.uint16))
    run = fake_run(tmp_path / "run", open_tiles(tmp_path / "tiles"), k=3, trained=(1, 2, 3))
    rows = run.rows("fine-tuned", "automatic")
    assert sum(not row["nuclei_true"] for row in rows) == 2
    assert all(row["nuclei_true"] for _, row in ranked(rows))
    assert ranked([row for row in rows if not row["nuclei_true"]])
    assert "2 of 12 tiles have no true nuclei" in Page(write_report(run).read_text()).text


def test_sessions_of_several_versions_are_all_named(tiles: TileSet, tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", tiles, k=3, trained=(1,))
    parsed = Page(write_report(run).read_text())
    assert "ends with the numbers of an unbroken one" in parsed.text
    assert any("float32" in row for row in parsed.rows)
    content = json.loads((run.folder / "run.json").read_text())
    for session, commit in zip(content["sessions"], ("aaa", "bbb"), strict=True):
        session["commit"] = commit
    # Of a version that noted no more.
    content["sessions"].append({"started": "2026-01-01T00:00:00+00:00", "command": "nuclora cv d --folds 1"})
    (run.folder / "run.json").write_text(json.dumps(content))
    run = Run(run.folder)
    parsed = Page(write_report(run).read_text())
    assert "They are of 2 commits: the numbers are those of no single session." in parsed.text
    assert {entry["commit"] for entry in summarise_run(run)["results"]} == {"aaa, bbb"}
    assert all(entry["command"].endswith("; nuclora cv d --folds 1") for entry in summarise_run(run)["results"])
