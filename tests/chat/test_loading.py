"""The model of a conversation: with the adapter and the template that it was tuned with."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sinklora.chat.loading import chat_model
from sinklora.cli import application
from sinklora.train.chat_templates import TEMPLATE_FILE, template_text
from sinklora.train.examples import ExampleSource
from sinklora.train.instruction_spec import InstructionSpec
from sinklora.train.run import load_trained, train


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[InstructionSpec, Path]:
    """A run of two steps on instructions in Llama-2's template."""
    place = tmp_path_factory.mktemp("tuned")
    rows = [{"instruction": f"def f(x): return {name}(x)\nWhich?", "output": name} for name in ("sum", "len")]
    (place / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = InstructionSpec(
        base="data/base",
        examples=ExampleSource(f"jsonl:{place / 'examples.jsonl'}"),
        template="llama-2",
        context=512,
        pattern="sf",
        epochs=2.0,
        batch_size=1,
        micro_batch_size=1,
        learning_rate=1e-2,
        warmup_steps=1,
        bf16=False,
    )
    return spec, train(spec, runs=place / "runs", cache=place / "cache", progress=False).path / "adapter"


def test_an_adapter_brings_its_template(tuned: tuple[InstructionSpec, Path]) -> None:
    _, folder = tuned
    model, tokenizer = chat_model("data/base", str(folder))
    assert tokenizer.chat_template == template_text("llama-2") == (folder / TEMPLATE_FILE).read_text()
    assert chat_model("data/base").tokenizer.chat_template is None
    ids = torch.arange(3, 40)[None]
    base = chat_model("data/base").model
    with torch.inference_mode():
        assert not torch.equal(model(ids).logits, base(ids).logits)


def test_a_template_that_is_named_comes_before_the_adapters(
    tuned: tuple[InstructionSpec, Path], tmp_path: Path
) -> None:
    _, folder = tuned
    other = shutil.copytree(folder, tmp_path / "other")
    (other / TEMPLATE_FILE).write_text("{{ messages[0]['content'] }}")
    assert chat_model("data/base", str(other)).tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert chat_model("data/base", str(other), "llama-2").tokenizer.chat_template == template_text("llama-2")


def test_a_template_whose_tokens_are_missing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"template='chatml'.*without a special token of the tokenizer"):
        chat_model("data/base", template="chatml")


def test_its_logits_are_those_of_the_run(tuned: tuple[InstructionSpec, Path], tmp_path: Path) -> None:
    spec, folder = tuned
    runs = folder.parents[1]
    again = train(dataclasses.replace(spec), runs=runs, cache=runs.parent / "cache", progress=False)
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        expected = load_trained(again, spec)(ids).logits
        found = chat_model("data/base", str(folder)).model.float()(ids).logits
    scale = float(expected.abs().max())
    assert torch.allclose(found, expected, atol=0.02 * scale)  # merged in the dtype that is fast here


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--base", "nowhere/nothing"], "base='nowhere/nothing': no model there"),
        (["--adapter", "docs"], "adapter='docs'"),
        (["--template", "llama-9"], "template='llama-9': expected one of llama-2, llama-3, chatml"),
        ([], "tokenizer='data/base': has no chat template"),
    ],
)
@pytest.mark.parametrize("face", ["terminal", "page"])
def test_what_cannot_be_had_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str, face: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "page.txt").write_text("A page.")
    where = ["--page", "--port", "0"] if face == "page" else ["--document", str(tmp_path / "page.txt")]
    base = [] if "--base" in options else ["--base", "data/base"]
    said = CliRunner().invoke(application, ["chat", *where, *base, *options])
    assert said.exit_code == 2
    assert words in " ".join(said.stderr.split()) and "Traceback" not in said.stderr
