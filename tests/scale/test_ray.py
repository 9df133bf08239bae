"""Work on a local Ray cluster of two processes ends as work in one process does, also where workers die of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from PIL import Image

from nuclora.cli import progress, runs
from nuclora.errors import NucloraError
from nuclora.files import AppendLog
from nuclora.inference import hashes
from nuclora.inference.engine import Engine, LocalEngine
from nuclora.inference.image_files import find_images
from nuclora.inference.images import Outcome, predict_images
from nuclora.inference.jobs import How
from nuclora.inference.outputs import FORMATS, open_outputs, stamp_of
from nuclora.inference.provenance import hash_file
from nuclora.recipe import Recipe
from nuclora.run import Run
from nuclora.scale import cluster as of_cluster
from nuclora.scale import pool, training
from nuclora.scale.cluster import Cluster, Place, WorkerSize, connect, count_workers, needs_of
from nuclora.scale.prediction import RayEngine
from nuclora.training.interrupt import Stopped
from nuclora.training.monitor import Monitor
from one_line import assert_one_line
from slide_makers import write_slide
from spots import SETTINGS, SpotPredictor, spots

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nuclora[scale]'")
    import spots as module

    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_cluster.SETTINGS.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    # It is no package that workers could import.
    ray.cloudpickle.register_pickle_by_value(module)
    with connect() as cluster:
        yield cluster
    ray.shutdown()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pool, training):
        monkeypatch.setattr(module, "POLL", 0.05)


def kill_worker(title: str) -> int:
    """Kill a Ray worker that does this."""
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{title}"):
            process.kill()
            return 1
    return 0


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder of outputs, but for what has times in it."""
    timed = {"summary.csv", "predict.jsonl", ".lock"}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in timed)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of several blocks, two images, and a letter."""
    folder = tmp_path_factory.mktemp("inputs")
    write_slide(folder / "slide.tif", spots(500, 620), 0.5)
    for seed in (1, 2):
        Image.fromarray(spots(90, 130, seed)).save(folder / f"image {seed}.png")
    (folder / "letter.png").write_text("a letter")
    return folder


def predict(inputs: Path, out: Path, engine: Engine, **progress: Any) -> Outcome:
    how = How({"adapter": "spots"}, SpotPredictor, tuple(FORMATS), SETTINGS)
    with open_outputs(out) as folder:
        return predict_images(find_images([inputs]), folder, how, engine=engine, **progress)


@pytest.fixture(scope="module")
def predicted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """By one process."""
    out = tmp_path_factory.mktemp("local") / "out"
    return out, predict(inputs, out, LocalEngine())


def untimed(outcome: Outcome) -> list[tuple[Any, ...]]:
    return [(row.image, row.width, row.height, row.nuclei, row.mean_area_px, row.tissue_mm2) for row in outcome.rows]


def test_predictions_stopped_and_killed_end_as_in_one_process(
    cluster: Cluster, inputs: Path, predicted: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """Images, a letter and a slide; stopped after some blocks, and gone on with until a worker dies of a block."""
    out, expected = predicted

    def stop(name: str, done: int, total: int) -> None:
        assert (name, total > 4) == ("slide", True)
        if done >= 2:
            raise Stopped

    engine = RayEngine(cluster)
    with pytest.raises(Stopped):
        predict(inputs, tmp_path / "out", engine, block_progress=stop)
    engine.close()
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "slide.parts").glob("*.npz")}
    assert len(parts) >= 2
    killed = 0

    def kill(name: str, done: int, total: int) -> None:
        nonlocal killed
        if not killed:
            assert done >= len(parts)
            assert {path: path.stat().st_mtime_ns for path in parts} == parts
            killed = kill_worker("Worker")
            assert killed

    engine = RayEngine(cluster)
    told: list[tuple[int, int]] = []
    outcome = predict(inputs, tmp_path / "out", engine, block_progress=kill, progress=lambda *done: told.append(done))
    engine.close()
    assert killed
    assert untimed(outcome) == untimed(expected)
    assert outcome.rows[2].nuclei > 100
    assert files(tmp_path / "out") == files(out)
    for folder in (tmp_path / "out", out):
        with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
            assert [row["image"] for row in csv.DictReader(file)] == [row.image for row in expected.rows]
    assert [str(error) for error in outcome.failures] == [str(error) for error in expected.failures]
    assert len(outcome.failures) == 1
    with open_outputs(tmp_path / "out") as folder:
        for record in folder.records.values():
            expected_stamps = {output: stamp_of(folder.path(record.name, output)) for output in FORMATS}
            assert record.written == expected_stamps
    assert [done for done, _ in told] == list(range(told[0][1] + 1))


def test_workers_hash_no_file_that_has_not_changed(
    cluster: Cluster, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_GRAIN_NS", -(10**18))
    image, out = inputs / "image 1.png", tmp_path / "out"
    predict(image, out, LocalEngine())
    # Remembered is another hash than the file has.
    notes = AppendLog(out / "predict.jsonl")
    notes.rewrite([line.replace(hash_file(image), "0" * 64) for line in notes.lines()])
    for kept in ({str(image)}, set()):
        engine = RayEngine(cluster)
        assert predict(image, out, engine).kept == kept
        engine.close()
        os.utime(image)


class Frail:
    """An actor for what can go wrong; it loads nothing."""

    def ready(self) -> None: ...

    def refuse(self) -> None:
        raise NucloraError("not the weights", path="/weights", mend="fetch them")

    def nap(self) -> None:
        time.sleep(3)

    def die(self) -> None:
        os._exit(1)


def make_frail(cluster: Cluster, actors: list[Any]) -> Callable[[], Any]:
    """Starts frail actors, and counts them."""
    import ray

    def make() -> Any:
        actors.append(ray.remote(**cluster.needs)(Frail).remote())
        return actors[-1]

    return make


@pytest.fixture
def frail(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[[str], None], list[Any]]]:
    """Calls a method of a frail actor as a task; and the actors that were started."""
    import ray

    monkeypatch.setattr(pool, "TRIES", 2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    actors: list[Any] = []
    workers = pool.Pool(cluster, make_frail(cluster, actors), lambda: None)

    def call(method: str) -> None:
        def steps(worker: Any) -> pool.Steps:
            yield getattr(worker, method).remote()

        workers.run(deque([pool.Task("frail work", "", steps)]))

    yield call, actors
    workers.close()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_what_an_actor_refuses_arrives_whole(frail: tuple[Callable[[str], None], list[Any]]) -> None:
    call, _ = frail
    with pytest.raises(NucloraError) as error:
        call("refuse")
    assert type(error.value) is NucloraError
    assert (error.value.reason, error.value.path, error.value.mend) == ("not the weights", "/weights", "fetch them")
    assert str(error.value) == "/weights: not the weights; fetch them"


def test_work_that_kills_its_actors_is_given_up(frail: tuple[Callable[[str], None], list[Any]]) -> None:
    call, actors = frail
    with pytest.raises(NucloraError, match=r"^frail work: 2 workers died of it \(ActorDiedError\); see whether"):
        call("die")
    assert len(actors) == 2


def test_work_that_is_given_up_may_end_and_the_rest_goes_on(
    frail: tuple[Callable[[str], None], list[Any]], cluster: Cluster
) -> None:
    _, actors = frail
    done = []

    def deadly(worker: Any) -> pool.Steps:
        yield worker.die.remote()

    def give_up(error: NucloraError) -> None:
        done.append(str(error)[:10])

    def sound(worker: Any) -> pool.Steps:
        done.append((yield worker.ready.remote()))

    workers = pool.Pool(cluster, make_frail(cluster, actors), lambda: None)
    workers.run(
        deque([pool.Task("frail work", "", deadly, give_up), *(pool.Task("more", "", sound) for _ in range(3))])
    )
    workers.close()
    assert sorted(done, key=str) == [None, None, None, "frail work"]


def test_idle_actors_of_a_lost_machine_cost_no_work(
    frail: tuple[Callable[[str], None], list[Any]], cluster: Cluster
) -> None:
    import ray

    _, actors = frail
    done = []

    def make() -> Any:
        actors.append(ray.remote(num_cpus=0)(Frail).remote())
        return actors[-1]

    def sound(worker: Any) -> pool.Steps:
        yield worker.nap.remote()
        done.append((yield worker.ready.remote()))

    workers = pool.Pool(cluster, make, lambda: None)
    workers.run(deque(pool.Task("work", "", sound) for _ in range(2)))
    started = len(actors)
    assert started == 2
    for actor in actors:
        ray.kill(actor)
    # Two deaths of one task would be given up.
    workers.run(deque([pool.Task("more work", "", sound)]))
    workers.close()
    assert len(done) == 3
    assert len(actors) == started + 1


def test_what_kills_every_worker_ends_the_command(
    frail: tuple[Callable[[str], None], list[Any]], cluster: Cluster
) -> None:
    _, actors = frail
    ends = []

    def deadly(worker: Any) -> pool.Steps:
        yield worker.die.remote()

    workers = pool.Pool(cluster, make_frail(cluster, actors), lambda: None)
    with pytest.raises(NucloraError, match="2 workers died of it"):
        workers.run(deque(pool.Task("work", "", deadly, ends.append) for _ in range(20)))
    workers.close()
    assert len(ends) == 1
    assert len(actors) <= 5


class Stillborn:
    """An actor that never becomes ready."""

    def ready(self) -> None:
        os._exit(1)


def test_workers_that_die_while_they_start_stop_no_others(
    frail: tuple[Callable[[str], None], list[Any]], cluster: Cluster
) -> None:
    import ray

    made: list[type] = []
    done = []

    def make() -> Any:
        made.append(Frail if not made else Stillborn)
        return ray.remote(**cluster.needs)(made[-1]).remote()

    def slow(worker: Any) -> pool.Steps:
        yield worker.nap.remote()
        done.append(worker)

    workers = pool.Pool(cluster, make, lambda: None)
    workers.run(deque(pool.Task("slow work", "", slow) for _ in range(3)))
    workers.close()
    assert len(done) == 3
    # More deaths than would be given up.
    assert made.count(Stillborn) > pool.TRIES


def test_a_cluster_that_does_not_start_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(*args: object, **options: object) -> None:
        # Ray raises Exception itself.
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(NucloraError, match=r"no Ray cluster \(The current node timed out.*\); see `ray status`, try"),
        connect(),
    ):
        pass


def test_a_cluster_that_was_killed_is_told_from_one_that_answers(tmp_path: Path) -> None:
    note = tmp_path / "ray_current_cluster"
    assert not of_cluster._is_stale(note)
    with socket.create_server(("127.0.0.1", 0)) as server:
        note.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert not of_cluster._is_stale(note)
    assert of_cluster._is_stale(note)


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tiny_recipe: Recipe, tiny_sam_folder: Path, tmp_path_factory: Any) -> list[object]:
    """What `nuclora cv` is given: enough steps to be interrupted in."""
    fields = tiny_recipe.model_dump(mode="json")
    fields["train"] |= {"epochs": 8}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(Recipe.model_validate(fields).to_yaml())
    return [tiny_data, "-k", 2, "--recipe", path, "--weights", tiny_sam_folder]


class _At(progress.LineMonitor):
    """Does something when the first step of each fold is told."""

    action: Callable[[], object]

    def record(self, fold: int, record: Any) -> None:
        if record["kind"] == "step" and type(self).action:
            action, type(self).action = type(self).action, lambda: None
            action()
        super().record(fold, record)


def results(out: Path) -> Any:
    summary = json.loads((out / "summary.json").read_text())["results"]
    return [{key: value for key, value in entry.items() if key != "command"} for entry in summary]


def test_cv_stopped_and_killed_ends_as_in_one_process(
    cluster: Cluster, cli: Cli, trained: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = cli("cv", *trained, "-o", tmp_path / "local")
    assert code == 0, err
    given = ("cv", *trained, "-o", tmp_path / "ray", "--engine", "ray")
    monkeypatch.setattr(runs, "LineMonitor", _At)
    monkeypatch.setattr(_At, "action", lambda: os.kill(os.getpid(), signal.SIGINT), raising=False)
    code, out, err = cli(*given)
    assert (code, out) == (130, "")
    assert "everything is saved; run the same command again" in err
    assert list((tmp_path / "ray").glob("fold-*/checkpoint.safetensors"))
    assert not (tmp_path / "ray" / "summary.json").exists()
    killed: list[int] = []
    monkeypatch.setattr(_At, "action", lambda: killed.append(kill_worker("_cross_validate")))
    code, out, err = cli(*given)
    assert code == 0, err
    assert killed == [1]
    assert "its worker died (WorkerCrashedError); again, from what is saved" in err
    for title in ("fold 1", "fold 2", "zero-shot"):
        assert f"{title}: done" in err
    assert results(tmp_path / "ray") == results(tmp_path / "local")
    for fold in (1, 2):
        files = [path / f"fold-{fold}/adapter/adapter_model.safetensors" for path in tmp_path.iterdir()]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert all("nuclora cv" in session["command"] for session in Run(tmp_path / "ray").info["sessions"])


def test_ablate_is_that_of_one_process(cluster: Cluster, cli: Cli, trained: list[object], tmp_path: Path) -> None:
    (tmp_path / "changes.yaml").write_text(
        f"name: tiny\nrecipe: {trained[4]}\nrows:\n"
        "  - {name: high-rate, why: faster, set: [train.learning_rate=0.01]}\n"
        "  - {name: bad, why: its folder is taken, set: [train.learning_rate=0.02]}\n"
    )
    given = ("ablate", trained[0], "--weights", trained[6], "-c", tmp_path / "changes.yaml", "--set", "train.epochs=1")
    rows = {}
    for name, engine in (("local", ()), ("ray", ("--engine", "ray"))):
        (tmp_path / name / "bad").mkdir(parents=True)
        (tmp_path / name / "ablation.json").touch()
        (tmp_path / name / "bad" / "notes.txt").touch()
        code, _, err = cli(*given, "-o", tmp_path / name, *engine)
        assert code == 2
        assert "1 row failed: bad: neither empty nor a nuclora run" in err.splitlines()[-1]
        document = json.loads((tmp_path / name / "ablation.json").read_text())
        rows[name] = [(row["name"], row["state"], row.get("results")) for row in document["rows"]]
    assert rows["ray"] == rows["local"]
    assert [state for _, state, _ in rows["ray"]] == ["done", "done", "lacking"]


def test_a_fold_that_fails_is_told_in_the_line_of_the_local_engine(
    cluster: Cluster, cli: Cli, trained: list[object], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(str(trained[0]), tmp_path / "data")
    image = sorted((tmp_path / "data").rglob("tissue images/*.png"))[0]
    image.write_bytes(image.read_bytes()[:60])
    given = ("cv", tmp_path / "data", *trained[1:], "--folds", 1, "--no-zero-shot")
    _, _, local = cli(*given, "-o", tmp_path / "local")
    code, out, err = cli(*given, "-o", tmp_path / "ray", "--engine", "ray")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == local.splitlines()[-1]
    assert f"nuclora: {image}: " in err
    assert "Traceback" not in err


def test_a_damaged_log_does_not_end_those_who_follow_it(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Listens(Monitor):
        def record(self, fold: int, record: Any) -> None:
            heard.append((fold, record))

    class OneLog:
        def training_log(self, fold: int) -> AppendLog:
            return AppendLog(tmp_path / "metrics.jsonl")

    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe garbage\n")
    follower = training._Follower(cast(Run, OneLog()), [1], Listens())
    with (tmp_path / "metrics.jsonl").open("ab") as log:
        log.write(b'\xff{"step":\n{"step": 3}\n')
    follower.look()
    assert heard == [(1, {"step": 3})]


def test_without_ray_one_line_says_how_to_get_it(
    cli: Cli, trained: list[object], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = ("--engine ray needs the package ray", "pip install 'nuclora[scale]'")
    for command in (("cv", *trained), ("predict", inputs)):
        assert_one_line(cli(*command, "-o", tmp_path / "out", "--engine", "ray"), *told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--worker-cpus", "--workers-per-gpu"])
def test_what_is_for_ray_workers_is_refused_without_ray(cli: Cli, inputs: Path, tmp_path: Path, option: str) -> None:
    assert_one_line(cli("predict", inputs, "-o", tmp_path / "out", option, 2), f"{option} is for --engine ray")


@pytest.mark.parametrize(
    ("machines", "size", "workers", "needs"),
    [
        ([{"CPU": 3}, {"CPU": 3}], WorkerSize(2), 2, {"num_cpus": 2}),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 4}, {"CPU": 2, "GPU": 8}], WorkerSize(), 6, {"num_cpus": 1, "num_gpus": 1}),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 1}], WorkerSize(1, 14), 14, {"num_cpus": 1, "num_gpus": 0.0714}),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 3, "GPU": 1}], WorkerSize(2, 4), 9, {"num_cpus": 2, "num_gpus": 0.25}),
    ],
)
def test_workers_are_counted_machine_by_machine(
    machines: list[dict[str, float]], size: WorkerSize, workers: int, needs: dict[str, float]
) -> None:
    assert needs_of(machines, size) == needs
    assert count_workers(machines, size) == workers


@pytest.mark.parametrize("per_gpu", range(1, 65))
def test_as_many_shares_fit_a_gpu_as_workers_are_to_share_it(per_gpu: int) -> None:
    share = needs_of([{"CPU": 1, "GPU": 1}], WorkerSize(1, per_gpu))["num_gpus"]
    # As Ray counts: in whole ten-thousandths.
    assert 10_000 // round(share * 10_000) == per_gpu


def test_a_cluster_without_room_for_a_worker_is_refused(cluster: Cluster) -> None:
    assert cluster.workers == 2
    with (
        pytest.raises(NucloraError, match="no machine of the Ray cluster has 4 cores for a worker; lower"),
        connect(WorkerSize(4)),
    ):
        pass


def test_a_cluster_without_a_gpu_to_share_is_refused(cluster: Cluster) -> None:
    assert cluster.workers == 2
    with pytest.raises(NucloraError, match="has a GPU; leave out --workers-per-gpu"), connect(WorkerSize(1, 2)):
        pass


def test_a_cluster_that_does_not_answer_is_one_line(
    cli: Cli, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nuclora[scale]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    told = cli("predict", inputs, "-o", tmp_path / "out", "--engine", "ray")
    assert_one_line(told, "no Ray cluster at 127.0.0.1:1 (", "check RAY_ADDRESS")


def test_a_worker_that_does_not_share_the_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with pytest.raises(NucloraError, match=r"run\.json: not to be seen from the worker on .*; run the command in"):
        Place(Path("run.json")).take()
    (tmp_path / "run.json").touch()
    monkeypatch.setattr(sys, "argv", ["worker"])
    Place(Path("run.json"), command=("nuclora", "cv")).take()
    assert sys.argv == ["nuclora", "cv"]
