"""The loss of a row does not depend on how far its batch pads it, nor on what it is packed with."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers import assert_close
from sinklora.attention.patterns import PATTERNS
from sinklora.hf.models import use_pattern
from tiny_models import VOCABULARY, tiny_model

LENGTH = 24


@pytest.fixture(scope="module", params=("llama-gqa", "neox-mha"))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param, max_position_embeddings=256)


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(
    model: PreTrainedModel, row: Tensor, labels: Tensor, **inputs: Tensor
) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(input_ids=row, labels=labels, use_cache=False, **inputs).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", PATTERNS)
def test_loss_of_a_row_does_not_depend_on_its_company(model: PreTrainedModel, name: str) -> None:
    use_pattern(model, name).train()
    row = tokens(LENGTH, seed=0)
    expected = loss_and_gradients(model, row, row)
    results = {}
    for padding in (3, 40):
        padded = torch.nn.functional.pad(row, (0, padding))
        mask = (padded > 0).long()
        labels = padded.masked_fill(mask == 0, -100)
        results[f"{padding} right"] = loss_and_gradients(model, padded, labels, attention_mask=mask)
        padded, mask, labels = (x.flip(1) for x in (padded, mask, labels))
        padded[:, padding:], labels[:, padding + 1 :] = row, row[:, 1:]
        labels[:, padding] = -100  # padding predicts nothing
        results[f"{padding} left"] = loss_and_gradients(model, padded, labels, attention_mask=mask)
    company = tokens(72, seed=1)
    positions = torch.cat([torch.arange(LENGTH), torch.arange(72)])[None]
    labels = torch.cat([row, company.new_full(company.shape, -100)], 1)
    packed = torch.cat([row, company], 1)
    results["packed"] = loss_and_gradients(model, packed, labels, position_ids=positions)
    for actual in results.values():
        for key, value in expected.items():
            assert_close(actual[key], value, atol=2e-5 * max(1.0, value.abs().max().item()))
