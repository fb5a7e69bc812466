"""Adapters written by the Trainer, opened and merged by peft: the same logits, or a warning."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CohereConfig, PreTrainedModel, Trainer, TrainingArguments

from adapted_models import logits_of, randomized
from helpers import assert_close, every_pair
from sinklora.attention.patterns import SF
from sinklora.hf.models import current_pattern, use_pattern
from sinklora.hf.rope import extend_context
from sinklora.lora.adapted_model import LoraPlusModel
from sinklora.lora.adapter import lora_plus, merge_adapter
from sinklora.lora.checkpoint import load_adapter, save_adapter
from tiny_models import make_batch, tiny_model

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])

LOADERS: dict[str, Callable[[PreTrainedModel, str], nn.Module]] = {
    "PeftModel": PeftModel.from_pretrained,
    "AutoPeftModel": lambda base, folder: AutoPeftModelForCausalLM.from_pretrained(folder, dtype=base.dtype),
    "AutoModel": lambda base, folder: AutoModelForCausalLM.from_pretrained(folder, dtype=base.dtype),
}


def base_on_disk(
    folder: Path, architecture: str = "llama-gqa", **changes: object
) -> Callable[..., PreTrainedModel]:
    tiny_model(architecture, **changes).save_pretrained(folder)
    return lambda dtype=torch.float32: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def messages(caught: list[warnings.WarningMessage]) -> str:
    return "\n".join(str(warning.message) for warning in caught)


# ----------------------------------------------------------------------------- peft and transformers


@pytest.mark.parametrize(
    ("loader", "dtype", "tied", "architecture"),
    every_pair(LOADERS, (torch.float32, torch.bfloat16), (True, False), ("llama-mha", "qwen3-gqa")),
    ids=str,
)
def test_other_loaders_give_the_same_logits(
    loader: str, dtype: torch.dtype, tied: bool, architecture: str, tmp_path: Path
) -> None:
    base = base_on_disk(tmp_path / "base", architecture, tie_word_embeddings=tied)
    model = randomized(lora_plus(use_pattern(base(dtype), SF))).eval()
    save_adapter(model, tmp_path / "adapter")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = LOADERS[loader](base(dtype), str(tmp_path / "adapter")).eval()
    assert "Unexpected keyword" not in messages(caught), "nothing is lost"
    expected = logits_of(model).float()
    # peft leaves what was trained in full in the base model's dtype.
    atol = 1e-6 if dtype == torch.float32 else 0.05 * expected.abs().max().item()
    assert_close(logits_of(loaded).float(), expected, atol=atol)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("written_by", ["save_adapter", "save_pretrained"])
def test_lost_positions_are_named_by_other_loaders(written_by: str, loader: str, tmp_path: Path) -> None:
    base = base_on_disk(tmp_path / "base")
    model = randomized(lora_plus(extend_context(base(), 256))).eval()
    if written_by == "save_adapter":
        save_adapter(model, tmp_path / "adapter")
    else:
        model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.warns(
        UserWarning, match=r"sinklora.load_adapter restores .*positions \(linear, factor 4, 256"
    ):
        lossy = LOADERS[loader](base(), str(tmp_path / "adapter")).eval()
    assert (logits_of(lossy) - logits_of(model)).abs().max() > 1e-2
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*sinklora")
        assert torch.equal(logits_of(load_adapter(base(), tmp_path / "adapter")), logits_of(model))


def test_a_lost_pattern_in_evaluation_is_named(tmp_path: Path) -> None:
    base = base_on_disk(tmp_path / "base")
    save_adapter(lora_plus(use_pattern(base(), SF, evaluate_with_pattern=True)), tmp_path / "adapter")
    with pytest.warns(
        UserWarning, match=r"sinklora.load_adapter restores .*evaluation with the training pattern"
    ):
        PeftModel.from_pretrained(base(), tmp_path / "adapter")


def test_positions_that_the_base_model_has_on_disk_are_not_lost(tmp_path: Path) -> None:
    extend_context(tiny_model("llama-gqa"), 256, method="yarn").save_pretrained(tmp_path / "base")
    base = lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base")  # noqa: E731
    model = randomized(lora_plus(base())).eval()
    save_adapter(model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unexpected keyword")
        loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert torch.equal(logits_of(loaded), logits_of(model))


# ----------------------------------------------------------------------------- the card


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn"])
def test_what_the_card_says_works(method: str, tmp_path: Path) -> None:
    base = base_on_disk(tmp_path / "base")
    batch = make_batch("plain", tokens=100)
    model = randomized(lora_plus(extend_context(base(), 256, method=method))).eval()
    expected = model(**batch.inputs, use_cache=False).logits
    save_adapter(model, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(programs) == 2, "with sinklora, and with peft alone"
    for program in programs:
        program = program.replace("path/of/the/base/model", str(tmp_path / "base"))
        names: dict[str, nn.Module] = {}
        exec(program.replace("path/of/this/folder", str(tmp_path / "adapter")), names)
        assert torch.equal(names["model"].eval()(**batch.inputs, use_cache=False).logits, expected)


def test_the_card_describes_the_adapter(tmp_path: Path) -> None:
    model = lora_plus(use_pattern(extend_context(tiny_model("qwen3-gqa"), 128), SF), rank=3, alpha=5)
    model.get_base_model().name_or_path = "somebody/a-model"
    save_adapter(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nbase_model: somebody/a-model\nlibrary_name: peft\n")
    for text in (
        "LoRA of rank 3, alpha 5 on 8 projections",
        "9 normalization layers, 1 embedding or output layers",  # 2 x (2 + 2 of q and k) and the last
        "Positions (RoPE): linear, factor 2, 128 tokens",
        repr(SF.to_dict()),
        "loses positions (linear, factor 2, 128 tokens)",
    ):
        assert text in card
    assert "More Information Needed" not in card


@pytest.mark.parametrize(
    ("tied", "trained", "norms", "tables"), [(False, True, 5, 1), (True, True, 5, 1), (False, False, 0, 0)]
)
def test_the_card_counts_what_is_trained_in_full(
    tied: bool, trained: bool, norms: int, tables: int, tmp_path: Path
) -> None:
    base = tiny_model("llama-gqa", tie_word_embeddings=tied)
    save_adapter(lora_plus(base, train_embeddings=trained, train_norms=trained), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"{norms} normalization layers, {tables} embedding or output layers" in card
    assert "embeddings and normalization layers trained in full" not in card


def test_norms_with_a_vector_for_each_head_are_counted_as_norms(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = CohereConfig(vocab_size=64, intermediate_size=48, use_qk_norm=True, **sizes)
    save_adapter(lora_plus(AutoModelForCausalLM.from_config(config)), tmp_path)
    assert "4 normalization layers, 1 embedding" in (tmp_path / "README.md").read_text()


def test_the_card_names_no_path_of_a_machine(tmp_path: Path) -> None:
    base = base_on_disk(tmp_path / "base")
    save_adapter(lora_plus(base()), tmp_path / "adapter")
    assert str(tmp_path) not in (tmp_path / "adapter" / "README.md").read_text()


# ----------------------------------------------------------------------------- the Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    folder = tmp_path_factory.mktemp("trained")
    base = base_on_disk(folder / "base", "llama-gqa", tie_word_embeddings=True)
    model = lora_plus(use_pattern(extend_context(base(), 256), SF))
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=2,
        save_steps=1,
        learning_rate=0.05,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    ids = make_batch("plain").inputs["input_ids"]
    rows = [{"input_ids": row, "labels": row} for row in [*ids, *ids]]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    return trainer, folder


@pytest.mark.parametrize("place", ["run/checkpoint-2", "final"])
def test_what_the_trainer_writes_is_opened(place: str, trained: tuple[Trainer, Path]) -> None:
    trainer, folder = trained
    loaded = load_adapter(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / place)
    assert torch.equal(logits_of(loaded), logits_of(trainer.model.eval()))
    assert current_pattern(loaded) == SF and loaded.config.max_position_embeddings == 256
    card = (folder / place / "README.md").read_text()
    assert "linear, factor 4, 256 tokens" in card and "[More Information Needed]" not in card


def test_the_trainer_resumes_from_its_checkpoint(trained: tuple[Trainer, Path]) -> None:
    trainer, folder = trained
    expected = logits_of(trainer.model.eval())
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = lora_plus(use_pattern(extend_context(base, 256), SF))
    again = Trainer(model=model, args=trainer.args, train_dataset=trainer.train_dataset)
    again.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-1"))
    assert_close(logits_of(model.eval()), expected, atol=1e-5)


def test_a_folder_of_peft_alone_is_refused(tmp_path: Path) -> None:
    model = lora_plus(tiny_model("llama-gqa"))
    super(LoraPlusModel, model).save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(ValueError, match=r"peft alone wrote it, .* call extend_context as in training"):
        load_adapter(tiny_model("llama-gqa"), tmp_path)


# ----------------------------------------------------------------------------- merged by peft


def exactly(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("source", ["lora_plus", "load_adapter", "peft"])
@DTYPES
@TIED
def test_merging_by_peft_equals_merge_adapter(
    tied: bool, dtype: torch.dtype, source: str, tmp_path: Path
) -> None:
    def base() -> PreTrainedModel:
        return tiny_model("qwen3-gqa", tie_word_embeddings=tied).to(dtype)

    save_adapter(randomized(lora_plus(base())).eval(), tmp_path)
    load = {
        "lora_plus": lambda: randomized(lora_plus(base())).eval(),
        "load_adapter": lambda: load_adapter(base(), tmp_path),
        "peft": lambda: PeftModel.from_pretrained(base(), tmp_path).eval(),
    }[source]
    expected, merged = merge_adapter(load()), load().merge_and_unload(safe_merge=True)
    scale = logits_of(expected).float().abs().max().item()
    unchecked = logits_of(load().merge_and_unload()).float()  # rounds LoRA's product once less
    atol = 1e-6 if dtype == torch.float32 else 0.05 * scale
    assert_close(unchecked, logits_of(expected).float(), atol=atol)
    assert torch.equal(logits_of(merged), logits_of(expected))
    assert {value.dtype for value in merged.parameters()} == {dtype}
    wanted = exactly(expected)
    assert exactly(merged).keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in exactly(merged).items())
    tied_now = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert tied_now == tied and not any("peft" in type(module).__module__ for module in expected.modules())


@DTYPES
@TIED
def test_unloading_leaves_a_model_that_runs(tied: bool, dtype: torch.dtype) -> None:
    model = tiny_model("qwen3-gqa", tie_word_embeddings=tied).to(dtype)
    expected = logits_of(model)
    plain = lora_plus(model).unload()
    assert torch.equal(logits_of(plain), expected)
    assert {value.dtype for value in plain.parameters()} == {dtype}


@TIED
def test_tying_weights_again_changes_nothing(tied: bool) -> None:
    model = randomized(lora_plus(tiny_model("llama-gqa", tie_word_embeddings=tied))).eval()
    expected = logits_of(model)
    model.tie_weights()  # evaluation harnesses do
    assert torch.equal(logits_of(model), expected)
