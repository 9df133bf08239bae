"""Bad input met on the command line: one line that names the file and the mend, exit code 2, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nuclora.cli.main import run as entry_point
from nuclora.data import list_tiles, open_tiles
from nuclora.data.folds import make_folds
from nuclora.data.images import read_labels
from nuclora.data.prompts import inner_points, label_boxes
from nuclora.data.synthetic import write_dataset
from nuclora.errors import NucloraError
from nuclora.files import AppendLog, hold, write_atomic
from nuclora.models.checkpoints import load_base
from nuclora.recipe import LossSettings, load_recipe
from nuclora.report.breakdowns import wilson
from nuclora.training.changes import load_list
from nuclora.training.samples import nucleus_weights
from one_line import assert_one_line

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs the entry point and gives exit code, standard output and standard error."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("COLUMNS", "60")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nuclora", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            entry_point()
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    yield call
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "tiles"
    write_dataset(folder, tiles=6, size=64, organs=2, seed=1)
    return folder


@pytest.fixture(scope="module")
def settings(tiny_sam_folder: Path) -> list[str]:
    fields = (
        "input.size=64", "train.batch_size=2", "train.workers=0", "train.epochs=1", "adapter.rank=2",
        "evaluate.grid.points_per_side=3", "evaluate.protocols=[oracle-box]", "train.validations_per_epoch=0",
    )  # fmt: skip
    return [
        "--base",
        "custom",
        "--weights",
        str(tiny_sam_folder),
        *(part for field in fields for part in ("--set", field)),
    ]


@pytest.fixture(scope="module")
def trained(tiles: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cross-validation of two folds; copy it before you break it."""
    out = tmp_path_factory.mktemp("bad-run") / "run"
    command = ["cv", str(tiles), "-o", str(out), *settings, "-k", "2"]
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["nuclora", *command])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        entry_point()
    signal.signal(signal.SIGINT, before)
    patch.undo()
    assert not end.value.code
    return out


@pytest.fixture
def broken(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


GARBAGE = b"\x00\xff garbage \xfe{[,\n" * 3


@pytest.mark.parametrize("content", [GARBAGE, b"3\n4\n", b"tile,group,fold\na,b,c\n"])
@pytest.mark.parametrize("stage", ["zero-shot", "fold-1"])
def test_a_damaged_score_table_is_named_and_left_as_it_is(content, stage, broken, tiles, settings, cli):
    scores = broken / stage / "oracle-box" / "scores.csv"
    scores.write_bytes(content)
    assert_one_line(cli("cv", tiles, "-o", broken, *settings, "-k", 2), f"{scores}: damaged", "delete it and run")
    assert_one_line(cli("report", broken), f"{scores}: damaged")
    assert scores.read_bytes() == content


def test_the_mend_of_a_damaged_score_table_works(broken, trained, tiles, settings, cli):
    scores = broken / "fold-1" / "oracle-box" / "scores.csv"
    scores.unlink()
    assert cli("cv", tiles, "-o", broken, *settings, "-k", 2)[0] == 0
    assert scores.read_bytes() == (trained / "fold-1" / "oracle-box" / "scores.csv").read_bytes()


def test_a_format_of_no_tiles_is_refused(broken, cli):
    assert_one_line(cli("report", broken, "--format", "coco"), "--format is for tiles that --data names")


@pytest.mark.parametrize("content", [GARBAGE, b"3\n", b'{"kind": "step"}\n'])
def test_a_damaged_training_log_is_named(content, broken, cli):
    log = broken / "fold-1" / "metrics.jsonl"
    log.write_bytes(content)
    assert_one_line(cli("report", broken), f"{log}: damaged", "delete it: only curves")


@pytest.mark.parametrize("part", ["base", "data", "sessions"])
def test_a_hollow_run_json_is_no_run(part, broken, cli):
    path = broken / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: [1] if part == "sessions" else {}}))
    assert_one_line(cli("report", broken), "run.json: damaged; put back a copy of it")


@pytest.mark.parametrize(
    ("file", "mend"), [("recipe.yaml", "the recipe in run.json"), ("folds.csv", "`nuclora folds` with the run's data")]
)
def test_lost_parts_of_a_run_can_be_put_back(file, mend, broken, cli):
    (broken / file).unlink()
    assert_one_line(cli("report", broken), str(broken / file), f"put it back: {mend}")


def test_a_damaged_adapter_says_how_to_get_it_back(broken, tiles, settings, cli):
    (broken / "fold-1" / "adapter" / "nuclora.json").write_text("{")
    assert_one_line(
        cli("cv", tiles, "-o", broken, *settings, "-k", 2), "nuclora.json: not a valid card", "delete the folder of its"
    )
    shutil.rmtree(broken / "fold-1" / "adapter")
    # A new one might differ from the one that its scores are of.
    assert_one_line(
        cli("cv", tiles, "-o", broken, *settings, "-k", 2),
        "fold-1: holds scores of an adapter that is gone",
        "delete this folder",
    )
    shutil.rmtree(broken / "fold-1")
    assert cli("cv", tiles, "-o", broken, *settings, "-k", 2)[0] == 0


def _change_card(adapter: Path, **changes: object) -> None:
    path = adapter / "nuclora.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"recipe": {}}, "nuclora.json: not a valid recipe: name"), ({"base": "sam_vit_x"}, "which is no base")],
)
def test_a_wrong_card_is_named(changes, told, broken, tiles, tiny_sam_folder, tmp_path, cli):
    adapter = broken / "fold-1" / "adapter"
    _change_card(adapter, **changes)
    assert_one_line(cli("evaluate", adapter, tiles, "-o", tmp_path / "out", "--weights", tiny_sam_folder), told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensor: tensor * float("nan"), "holds NaN or infinity"),
        (lambda tensor: tensor.to(torch.int8), "of torch.int8, not (2, 32)"),
    ],
)
def test_adapter_weights_that_are_no_weights_are_refused(change, told, broken, tiles, tiny_sam_folder, tmp_path, cli):
    path = broken / "fold-1" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({**tensors, name: change(tensors[name])}, path)
    assert_one_line(
        cli("evaluate", path.parent, tiles, "-o", tmp_path / "out", "--weights", tiny_sam_folder), str(path), told
    )


def test_base_weights_with_nan_are_refused(tiny_sam_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_sam_folder, tmp_path / "sam"))
    tensors = load_file(folder / "model.safetensors")
    tensors["mask_decoder.iou_token.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NucloraError, match=r"mask_decoder\.iou_token\.weight holds NaN or infinity; get the file"):
        load_base("custom", folder)


@pytest.mark.parametrize(
    ("old", "new"), [('"hidden_size": 32', '"hidden_size": 33'), ('"num_hidden_layers": 2', '"num_hidden_layers": "x"')]
)
def test_an_impossible_architecture_is_told(old, new, tiny_sam_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_sam_folder, tmp_path / "sam"))
    config = folder / "config.json"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(NucloraError, match=r"config\.json: not a SAM configuration") as caught:
        load_base("custom", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<html>log in</html>", "a web page in its place"),
        (b"", "not a readable checkpoint (EOFError)"),
        ({1: torch.ones(1)}, "something else than named tensors"),
    ],
)
def test_a_file_that_holds_no_weights_is_told(content, told, tmp_path):
    path = tmp_path / "mobile_sam.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(NucloraError) as caught:
        load_base("mobile_sam", path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("input.size=100", "a multiple of 16; the nearest is 96"),
        ("input.size=1e9", "input.size: Input should be less than or equal to 8192"),
        ("train.batch_size=50", "3 training tiles are fewer than a batch of 50"),
        ("train.accumulation=3", "cannot be split"),
        ("adapter.last_blocks=9", "custom has 2 blocks"),
        ("adapter.targets=[]", "adapter.targets is empty"),
        ("adapter.alpha=.inf", "adapter.alpha: Input should be a finite number"),
        ("seed=4294967296", "seed: Input should be less than or equal to 4294967295"),
        ("train.learning_rate=1e300", "train.learning_rate: Input should be less than or equal to 100"),
        ("loss.bce=0", "nothing would teach the masks"),
        ("evaluate.protocols=[automatic, automatic]", "name each protocol once"),
    ],
)
def test_a_recipe_that_cannot_work_leaves_no_run_behind(field, told, tiles, settings, tmp_path, cli):
    """Else the mend would meet the refusal to go on with another recipe."""
    out = tmp_path / "run"
    assert_one_line(cli("cv", tiles, "-o", out, *settings, "-k", 2, "--set", field), told)
    assert not out.exists()


def test_weights_that_are_no_longer_numbers_are_not_saved(tiles, settings, tmp_path, monkeypatch, cli):
    def poison(self: torch.optim.Optimizer, closure: object = None) -> None:
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", poison)
    out = tmp_path / "run"
    # One step alone: no later loss tells.
    code, _, err = cli("train", tiles, "-o", out, *settings, "--set", "train.batch_size=6")
    assert code == 2
    assert "no longer finite after step 1; lower train.learning_rate" in err.splitlines()[-1]
    assert sorted(path.name for path in (out / "all-tiles").iterdir()) == [".lock", "metrics.jsonl"]


def test_a_tile_that_a_loader_process_cannot_read_is_one_line(tiles, settings, tmp_path, cli):
    data = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    image = next(data.rglob("*.png"))
    image.write_bytes(image.read_bytes()[:400])
    result = cli("train", data, "-o", tmp_path / "run", *settings, "--set", "train.workers=1")
    assert_one_line(result, f"{image}: cannot be read", "get it again")


def test_a_tile_that_goes_bad_costs_nothing_that_is_done(tiles, trained, settings, tmp_path, cli):
    data, out = Path(shutil.copytree(tiles, tmp_path / "tiles")), tmp_path / "run"
    assert cli("cv", data, "-o", out, *settings, "-k", 2, "--folds", 1)[0] == 0
    image = sorted(data.rglob("tissue images/*.png"))[0]
    whole = image.read_bytes()
    image.write_bytes(whole[:400])
    assert_one_line(
        cli("cv", data, "-o", out, *settings, "-k", 2),
        f"made from other tiles than those in {data}",
        "put the old ones",
    )
    assert str(image) in cli("data", "check", data)[1]
    image.write_bytes(whole)
    assert cli("cv", data, "-o", out, *settings, "-k", 2)[0] == 0
    for part in ("zero-shot", "fold-1", "fold-2"):
        mine, unbroken = ((run / part / "oracle-box" / "scores.csv").read_text() for run in (out, trained))
        # Zero-shot rows come in the order of the work, which was another here.
        assert sorted(mine.splitlines()) == sorted(unbroken.splitlines())


def test_a_file_in_the_place_of_an_output_folder_is_told(tiles, settings, tmp_path, cli):
    place = tmp_path / "file"
    place.write_text("mine")
    assert_one_line(cli("cv", tiles, "-o", place, *settings, "-k", 2), f"{place}: not a folder")
    code, _, err = cli("demo", "-o", place)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot write" in err
    assert place.read_text() == "mine"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_told(seed, tiles, tmp_path, cli):
    assert_one_line(cli("folds", tiles, "--seed", seed, "-o", tmp_path / "f.csv"), f"{seed} is no seed")


def test_too_few_tiles_for_folds_have_a_mend_that_works(tiles):
    only = open_tiles(tiles)
    with pytest.raises(NucloraError, match="2 folds of 1 tile; add tiles"):
        make_folds(only.subset(only.names[:1]), 2)


def test_a_fetch_of_nothing_shows_no_bar(cli):
    assert_one_line(cli("weights", "fetch", "nix"), "no base is called 'nix'")


@pytest.mark.parametrize("content", ["[]", "3", ""])
def test_a_damaged_note_of_an_evaluation_is_named(content, tiles, tiny_sam_folder, tmp_path, cli):
    (tmp_path / "evaluation.json").write_text(content)
    arguments = ("evaluate", "--base", "custom", tiles, "-o", tmp_path, "--weights", tiny_sam_folder)
    assert_one_line(cli(*arguments), "evaluation.json: damaged")


def test_two_evaluations_do_not_write_into_one_folder(tiles, tiny_sam_folder, tmp_path, cli):
    out = tmp_path / "out"
    arguments = ("evaluate", "--base", "custom", tiles, "-o", out, "--weights", tiny_sam_folder, "-p", "oracle-box")
    assert cli(*arguments)[0] == 0
    with hold(out, "evaluation"):
        assert_one_line(cli(*arguments), f"{out}: another nuclora works on this evaluation; wait")


def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(NucloraError, match=r"/dev/null: a device, not a file; name a file"):
        write_atomic(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_folder_is_no_file_to_write(name, tiles, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(cli("folds", tiles, "-k", "2", "-o", name), "a folder, not a file; name a file")


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\x85b", "a\udcffb"])
def test_a_name_that_no_table_can_hold_is_a_fault(name, tmp_path):
    for folder, suffix in (("images", ".png"), ("labels", ".npy")):
        (tmp_path / folder).mkdir()
        try:
            (tmp_path / folder / f"{name}{suffix}").touch()
        except OSError:
            pytest.skip("this file system has no such names")
    (fault,) = list_tiles(tmp_path).faults
    assert "\n" not in str(fault)
    assert repr(str(fault)).isascii()
    with pytest.raises(NucloraError, match="line break or control character"):
        open_tiles(tmp_path)


def test_only_line_feeds_end_a_line(tmp_path):
    log = AppendLog(tmp_path / "log")
    lines = ["form\x0cfeed", "group\x1dseparator", "next\x85line", "no-break\xa0space"]
    for line in lines:
        log.append(line)
    assert AppendLog(tmp_path / "log").lines() == lines


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere"), os.mkfifo])
def test_an_image_that_is_no_file_is_told_as_such(make, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    make(tmp_path / "images" / "a.png")
    np.save(tmp_path / "labels" / "a.npy", np.zeros((4, 4), np.int32))
    with pytest.raises(
        NucloraError, match=r"images/a\.png(: no file, or a link to none| is a folder, not a file); put"
    ):
        open_tiles(tmp_path)


def test_faults_stay_on_their_line_on_a_narrow_terminal(tmp_path, cli):
    name = "a_long_name_of_a_tile_with_[bold]_brackets_" + 60 * "x"
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    np.save(tmp_path / "labels" / f"{name}.npy", np.zeros((4, 4), np.float32))
    code, out, _ = cli("data", "check", tmp_path)
    assert code == 2
    assert f"fault  {tmp_path}/labels/{name}.npy: labels are float32" in out


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_a_label_map_may_be_one_pixel_high(shape, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, np.int32))
    assert read_labels(tmp_path / "a.tif").shape == shape


def test_ids_far_over_the_number_of_pixels_cost_no_memory():
    near = np.array([[0, 1, 1, 0], [2, 2, 0, 3], [2, 2, 0, 3]], np.int32)
    ids = np.array([0, 5, 2**30, 2**31 - 1], np.int32)
    far = ids[near]
    found, boxes = label_boxes(far)
    assert found.tolist() == ids[1:].tolist()
    assert np.array_equal(boxes, label_boxes(near)[1])
    assert np.array_equal(inner_points(far), inner_points(near))
    loss = LossSettings(small_weight=1)
    weights = nucleus_weights(far, found, loss)
    assert weights.tolist() == nucleus_weights(near, np.array([1, 2, 3], np.int32), loss).tolist() == [1, 1, 1]
    assert nucleus_weights(far, found[:2], loss).tolist() == [2, 1]


@pytest.mark.parametrize(("successes", "trials"), [(0, 3), (3, 3), (0, 1), (1, 1), (12, 12), (7, 7), (1, 6)])
def test_an_interval_holds_its_share(successes, trials):
    share, low, high = wilson(successes, trials)
    assert low <= share <= high


@pytest.mark.parametrize("text", ["name: 2020-99-99", "[" * 5000, "a: [", "!!binary x"])
def test_what_yaml_cannot_read_is_told(text, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for load in (load_recipe, load_list):
        with pytest.raises(NucloraError, match=r"a\.yaml: not YAML"):
            load(path)
    with pytest.raises(NucloraError, match="the value is not YAML"):
        load_recipe("paper", [f"name={text.removeprefix('name: ').removeprefix('a: ')}"])


def test_recipes_hold_finite_numbers_only():
    for field in ("augment.noise_std=.inf", "train.learning_rate=.inf", "evaluate.grid.stability_offset=.nan"):
        with pytest.raises(NucloraError, match="finite number"):
            load_recipe("paper", [field])


@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "nuclora: stopped\n"),
        ("raise OSError(5, 'Input/output error', 'x.csv')", 2, "nuclora: x.csv: Input/output error; check the disk"),
        ("raise MemoryError", 2, "nuclora: out of memory; end other work, or use a machine with more"),
        (
            "raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA')",
            2,
            "nuclora: out of memory; end other work, or use a machine with more",
        ),
        (
            "raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')",
            2,
            "nuclora: a process that reads tiles was killed; set train.workers=0",
        ),
        ("raise RuntimeError('something else')", 1, "our fault"),
        ("sys.exit(1)", 141, ""),
        ("sys.exit(0)", 0, ""),
        ("print('µm²')", 0, ""),
        ("raise ZeroDivisionError", 1, "our fault"),
    ],
)
def test_every_end_has_its_exit_code(does, code, told):
    script = (
        f"import os, signal, sys\nfrom nuclora.cli import main\ndef app():\n    {does}\nmain.app = app\nmain.run()\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)
