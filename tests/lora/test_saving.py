"""Saving: the last good adapter is never lost, several adapters are kept apart, damage is noticed."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapted_models import logits_of, randomized, trainable
from helpers import rest_slow
from sinklora.attention.patterns import S2, SF
from sinklora.hf.models import current_pattern, use_pattern
from sinklora.hf.rope import extend_context
from sinklora.lora.adapter import lora_plus, merge_adapter
from sinklora.lora.checkpoint import load_adapter, save_adapter
from sinklora.records.files import file_hash
from tiny_models import tiny_model

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "sinklora.json"}


def base(tied: bool = False) -> PreTrainedModel:
    return tiny_model("llama-gqa", num_hidden_layers=1, tie_word_embeddings=tied)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def with_reference(
    tied: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[PeftModel, Tensor, Tensor]:
    """A model with a second adapter, as trainers add one to compare with; the logits of both."""
    model = randomized(lora_plus(extend_context(base(tied).to(dtype), 128)))
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    reference = logits_of(randomized(model, seed=6).eval())
    model.set_adapter("default")
    return model, logits_of(model), reference


# ----------------------------------------------------------------------------- killed at any step

WRITES = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"}


class Killed(BaseException):
    """Raised by every operation from one on: what is on the disk then is what a killed process leaves."""


class Disk:
    """Watches operations on files below a folder, lets the chosen one fail; a hook cannot be removed."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder is None or event not in WRITES:
            return
        if any(str(value).startswith(str(self.folder)) for value in arguments):
            self.count += 1
            if self.dies and self.count >= self.step:
                raise Killed
            if self.count == self.step:
                raise OSError(28, "No space left on device")

    def save(self, model: nn.Module, folder: Path, step: int, dies: bool) -> bool:
        """Save, failing at the `step`-th operation (`dies`: and at all after it); False: there are fewer."""
        self.folder, self.count, self.step, self.dies = folder, 0, step, dies
        try:
            save_adapter(model, folder)
        except (Killed, OSError):
            pass
        finally:
            self.folder = None
        return self.count >= step


@pytest.fixture(scope="module")
def disk() -> Disk:
    return Disk()


@pytest.mark.parametrize("dies", rest_slow([True, False]), ids=["killed", "full-disk"])
def test_a_save_that_ends_at_any_step_leaves_the_old_adapter_or_the_new_one(
    dies: bool, disk: Disk, tmp_path: Path
) -> None:
    old_folder, folder = tmp_path / "old", tmp_path / "adapter"
    old = randomized(lora_plus(extend_context(base(), 128)), seed=4)
    old.add_adapter("draft", LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_adapter(old, old_folder)
    before = logits_of(old.eval())
    new, after, _ = with_reference()
    use_pattern(new, SF)

    outcomes: dict[tuple[str, ...], bool] = {}  # by the hashes of what lies there: True, the new adapter
    for step in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old_folder, folder)
        if not disk.save(new, folder, step, dies):
            break
        present = tuple(f"{name} {file_hash(folder / name)}" for name in sorted(finished_files(folder)))
        if present not in outcomes:
            outcomes[present] = check_whole(folder, before, after, {"default", "draft"}, {"default", "ref"})
    assert len(outcomes) >= 8 and {*outcomes.values()} == {False, True}

    disk.save(new, folder, step // 2, dies)
    save_adapter(new, folder)
    assert files_of(folder) == FILES | {"ref/adapter_config.json", "ref/adapter_model.safetensors"}
    assert torch.equal(logits_of(load_adapter(base(), folder)), after)


def finished_files(folder: Path) -> set[str]:
    return {name for name in files_of(folder) if not name.startswith(".writing")}


def check_whole(folder: Path, before: Tensor, after: Tensor, old: set[str], new: set[str]) -> bool:
    """Whether the new adapter is loaded; in all its parts it is that one or the old one."""
    loaded = load_adapter(base(), folder)
    is_new = torch.equal(logits_of(loaded), after)
    assert is_new or torch.equal(logits_of(loaded), before)
    assert set(loaded.peft_config) == (new if is_new else old)
    assert current_pattern(loaded) == (SF if is_new else None)
    return is_new


def test_a_first_save_that_is_interrupted_is_not_loaded(disk: Disk, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    model = randomized(lora_plus(base()))
    refused = 0
    for step in itertools.count(1):
        if not disk.save(model, folder, step, dies=True):
            break
        if not (folder / ".written").is_dir() and not (folder / "sinklora.json").is_file():
            with pytest.raises(ValueError, match=r"not a complete adapter of sinklora: .*sinklora.json"):
                load_adapter(base(), folder)
            refused += 1
        shutil.rmtree(folder, ignore_errors=True)
    assert refused >= 5


def test_a_later_plain_save_is_what_is_loaded(tmp_path: Path) -> None:
    old, new = randomized(lora_plus(base()), seed=4).eval(), randomized(lora_plus(base()), seed=6).eval()
    save_adapter(old, tmp_path / ".written")  # as a process leaves them that is killed before it moves them
    assert torch.equal(logits_of(load_adapter(base(), tmp_path)), logits_of(old))
    new.save_pretrained(str(tmp_path))  # as the Trainer saves
    assert torch.equal(logits_of(load_adapter(base(), tmp_path)), logits_of(new))
    assert files_of(tmp_path) == FILES


# ----------------------------------------------------------------------------- several adapters


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("active", ["default", "ref"])
def test_several_adapters_come_back(active: str, tied: bool, tmp_path: Path) -> None:
    model, first, second = with_reference(tied)
    model.set_adapter(active)
    for _ in range(2):
        save_adapter(model, tmp_path)
    loaded = load_adapter(base(tied), tmp_path)
    assert loaded.active_adapters == [active] and not trainable(loaded)
    for name, expected in {"default": first, "ref": second}.items():
        loaded.set_adapter(name)
        assert torch.equal(logits_of(loaded), expected)
    again = load_adapter(base(tied), tmp_path, trainable=True)
    assert trainable(again).keys() == trainable(model).keys()
    assert all(f".{active}." in name for name in trainable(again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_adapter_loaded_beside_another_is_itself(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    adapters = {}
    for seed, name in ((4, "default"), (6, "other")):
        model = randomized(lora_plus(base(tied).to(dtype)), seed=seed).eval()
        save_adapter(model, tmp_path / name)
        adapters[name] = logits_of(model)
    loaded = load_adapter(base(tied).to(dtype), tmp_path / "default")
    loaded.load_adapter(str(tmp_path / "other"), "other")
    for name, expected in adapters.items():
        loaded.set_adapter(name)
        assert torch.equal(logits_of(loaded), expected)


@pytest.mark.filterwarnings("error:You have requested")
@pytest.mark.parametrize("first", [True, False], ids=["beside", "alone"])
def test_a_further_adapter_keeps_embeddings_tied(first: bool) -> None:
    model = lora_plus(base(tied=True), train_embeddings=first)
    config = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "task_type": "CAUSAL_LM"}
    for name in ("second", "third"):
        model.add_adapter(name, LoraConfig(r=2, ensure_weight_tying=True, **config))
        model.set_adapter(name)
        language_model = model.get_base_model()
        output, embedding = language_model.lm_head, language_model.model.embed_tokens
        assert output.modules_to_save[name].weight is embedding.modules_to_save[name].weight
        assert embedding.modules_to_save[name].weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_adapter_of_another_name_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _, _ = with_reference(dtype=dtype)
    model.set_adapter("ref")
    model.delete_adapter("default")
    save_adapter(model, tmp_path)
    loaded = load_adapter(base().to(dtype), tmp_path)
    assert list(loaded.peft_config) == ["ref"] and "adapter_model.safetensors" not in files_of(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_two_adapters_active_at_once(tmp_path: Path) -> None:
    model = randomized(lora_plus(base(), train_embeddings=False, train_norms=False))
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    randomized(model, seed=6)
    model.base_model.set_adapter(["default", "ref"])
    expected = logits_of(model.eval())
    save_adapter(model, tmp_path)
    loaded = load_adapter(base(), tmp_path)
    assert loaded.active_adapters == ["default", "ref"] and torch.equal(logits_of(loaded), expected)


def test_a_dropped_adapter_leaves_the_folder_too(tmp_path: Path) -> None:
    model, expected, _ = with_reference()
    save_adapter(model, tmp_path)
    (tmp_path / "ref" / "notes.txt").write_text("kept")
    model.delete_adapter("ref")
    save_adapter(model, tmp_path)
    assert files_of(tmp_path) == FILES | {"ref/notes.txt"}
    assert torch.equal(logits_of(load_adapter(base(), tmp_path)), expected)


# ----------------------------------------------------------------------------- refused, nothing touched


def test_other_kinds_of_adapters_are_refused(tmp_path: Path) -> None:
    save_adapter(randomized(lora_plus(base())), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    prefix = get_peft_model(base(), PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    for refuse in (lambda: save_adapter(prefix, tmp_path), lambda: merge_adapter(prefix)):
        with pytest.raises(ValueError, match=r"adapter 'default'\) holds an adapter of type PREFIX_TUNING"):
            refuse()
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before

    prefix.save_pretrained(tmp_path)  # over ours
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is not the file that sinklora.json"):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize("name", ["..", "a/b"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    save_adapter(lora_plus(base()), tmp_path)
    state = json.loads((tmp_path / "sinklora.json").read_text())
    (tmp_path / "sinklora.json").write_text(json.dumps(state | {"adapters": ["default", name]}))
    with pytest.raises(ValueError, match="which cannot name a folder"):
        load_adapter(base(), tmp_path)


def test_a_slash_in_an_adapters_name_is_refused(tmp_path: Path) -> None:
    model = lora_plus(base())
    model.add_adapter("a/b", model.peft_config["default"])
    with pytest.raises(ValueError, match="adapter 'a/b' cannot name a folder"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# ----------------------------------------------------------------------------- what lies in a folder


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save_adapter(randomized(lora_plus(base())), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is damaged, or other weights were saved over it"):
        load_adapter(base(), tmp_path)


def test_a_torn_state_is_noticed(tmp_path: Path) -> None:
    save_adapter(lora_plus(base()), tmp_path)
    text = (tmp_path / "sinklora.json").read_text()
    (tmp_path / "sinklora.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"sinklora.json is damaged"):
        load_adapter(base(), tmp_path)


def test_a_state_that_is_no_object_is_noticed(tmp_path: Path) -> None:
    save_adapter(lora_plus(base()), tmp_path)
    (tmp_path / "sinklora.json").write_text("[]")
    with pytest.raises(ValueError, match=r"sinklora.json is damaged: it holds a list"):
        load_adapter(base(), tmp_path)


@pytest.mark.parametrize("evaluates", [True, False])
def test_an_adapter_without_a_pattern_is_loaded_without_one(evaluates: bool, tmp_path: Path) -> None:
    model = randomized(lora_plus(base())).eval()
    save_adapter(model, tmp_path)
    loaded = load_adapter(use_pattern(base(), S2, evaluate_with_pattern=evaluates), tmp_path)
    assert current_pattern(loaded) is None and torch.equal(logits_of(loaded), logits_of(model))


def test_an_adapter_of_the_first_release_is_read(tmp_path: Path) -> None:
    model = randomized(lora_plus(use_pattern(extend_context(base(), 128), S2)))
    save_adapter(model, tmp_path)
    state = json.loads((tmp_path / "sinklora.json").read_text())
    old = {key: state[key] for key in ("format", "base", "rope", "pattern", "evaluate_with_pattern")}
    (tmp_path / "sinklora.json").write_text(json.dumps(old))
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    kept = {key: value for key, value in fields.items() if not key.startswith("sinklora")}
    assert len(kept) == len(fields) - 1
    (tmp_path / "adapter_config.json").write_text(json.dumps(kept))
    loaded = load_adapter(base(), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model.eval())) and current_pattern(loaded) == S2


def test_damaged_weights_without_hashes_are_an_error_too(tmp_path: Path) -> None:
    save_adapter(lora_plus(base()), tmp_path)
    state = json.loads((tmp_path / "sinklora.json").read_text())
    (tmp_path / "sinklora.json").write_text(json.dumps(state | {"weights": {}}))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    del weights["base_model.model.model.norm.weight"]
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"missing base_model.model.model.norm.weight"):
        load_adapter(base(), tmp_path)


def test_a_text_of_ones_own_stays(tmp_path: Path) -> None:
    model = lora_plus(base())
    save_adapter(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Mine")
    save_adapter(model, tmp_path)
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / "README.md").read_text() == "# Mine"
    assert files_of(tmp_path) == FILES | {"tokenizer.json"}
    (tmp_path / "README.md").write_text(card + "\nadded")
    save_adapter(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == card


def test_a_parameter_that_zero_has_divided_is_named(tmp_path: Path) -> None:
    """ZeRO-3 leaves every process a parameter without numbers; an adapter of such would be saved as good."""
    model = lora_plus(base())
    [(name, parameter), *_] = [found for found in model.named_parameters() if found[1].requires_grad]
    parameter.data = torch.empty(0)
    with pytest.raises(ValueError, match=rf"^{name} is empty here \(ZeRO-3 divides it\): save inside"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
