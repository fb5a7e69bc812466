"""Adding a pattern is one class: everything that knows patterns takes it from there (`docs/extending.md`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from files_in_texts import module_in_text
from helpers import assert_close
from sinklora.attention import pattern as pattern_module
from sinklora.attention.dispatch import attend, available_backends
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import PATTERNS, find_pattern, pattern_from_dict
from sinklora.hf.models import current_pattern, use_pattern
from sinklora.reproduction.extension.study import attention_cost
from sinklora.reproduction.patterns.figures import mask_figure
from sinklora.reproduction.patterns.study import pattern_names
from sinklora.train.spec import TrainSpec
from tiny_models import tiny_model

FILES = {
    "mask": "sinklora/attention/kinds/neighbours.py",
    "windows": "sinklora/attention/kinds/first_token.py",
}


@pytest.fixture(params=FILES.values(), ids=FILES)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kind of a pattern that a file shown in the docs defines, known while a test runs."""
    before = dict(pattern_module.KINDS)
    module_in_text(request.param, tmp_path, monkeypatch)
    [kind] = pattern_module.KINDS.keys() - before.keys()
    yield kind
    del pattern_module.KINDS[kind]


def test_it_has_a_name_and_survives_a_dict(name: str) -> None:
    pattern = PATTERNS[name]
    assert find_pattern(name) == pattern and name in list(PATTERNS)
    assert pattern_from_dict(pattern.to_dict()) == pattern
    assert find_pattern(f"{name}(group_size=8)").group_size == 8


@pytest.mark.parametrize("packed", (False, True))
def test_every_backend_computes_it(name: str, packed: bool) -> None:
    pattern = PATTERNS[name]
    assert ("sdpa" in available_backends(torch.empty(0), pattern)) == (pattern.windows() is not None)
    ids = torch.tensor([[0] * 8 + [1] * 13]) if packed else None
    inputs = [torch.randn(1, heads, 21, 8, requires_grad=True) for heads in (4, 2, 2)]
    expected = attend(*inputs, pattern, document_ids=ids, backend="dense")
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    for backend in available_backends(torch.empty(0), pattern):
        output = attend(*inputs, pattern, document_ids=ids, backend=backend)
        assert_close(output, expected, atol=1e-5)
        for one, other in zip(torch.autograd.grad(output.square().sum(), inputs), wanted, strict=True):
            assert_close(one, other, atol=1e-5)


def test_it_is_drawn_and_counted(name: str) -> None:
    pattern = PATTERNS[name]
    mask = pattern.visible(2, 16)
    assert pattern.density(2, 16) == mask.sum().item() / (2 * 16 * 17 / 2)
    assert len(pattern.picture(16, 2).axes) == 2
    assert name in pattern_names(windows=pattern.windows() is not None)
    assert mask_figure(list(PATTERNS), 16).axes[len(PATTERNS) - 1].get_title() == name


def test_a_model_trains_with_it(name: str) -> None:
    model = use_pattern(tiny_model("llama-gqa"), name).train()
    assert current_pattern(model) == PATTERNS[name]
    ids = torch.randint(3, 61, (2, 24))
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    full = use_pattern(model, "full")(ids, labels=ids).loss
    assert abs(loss - full) > 1e-4


def test_a_training_is_specified_by_its_name(name: str) -> None:
    spec = TrainSpec(pattern=name, group_size=0.125)
    assert spec.attention_pattern() == find_pattern(f"{name}(group_size=0.125)")
    assert 0 < attention_cost(TrainSpec(context=256, steps=1, pattern=name)) < 1


def test_a_kind_is_taken_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"kind='{name}' of Other is taken by"):
        type("Other", (Pattern,), {"kind": name})
    with pytest.raises(TypeError, match="Other needs a `kind` of its own"):
        type("Other", (type(PATTERNS[name]),), {})


def test_a_kind_is_not_named_like_a_pattern(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pattern_module.KINDS, "sf", type(PATTERNS[name]))
    with pytest.raises(ValueError, match="kind='sf'"):
        list(PATTERNS)
