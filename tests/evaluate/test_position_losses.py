"""Loss by position against the losses of one forward pass."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers import assert_close
from sinklora.evaluate.position_losses import losses_by_position
from tiny_models import tiny_model


def test_every_position_counts_once() -> None:
    model = tiny_model("llama-gqa").eval()
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (3, 40))
    found = losses_by_position(model, list(ids), context=32, bucket=8, progress=False)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[:, :32])).logits.float()
    losses = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), torch.from_numpy(ids[:, 1:32]), reduction="none"
    )
    padded = torch.cat([torch.full((3, 1), torch.nan), losses], 1).view(3, 4, 8)
    assert_close(found, padded.nanmean(-1).numpy(), atol=1e-5)


@pytest.mark.parametrize(("bucket", "words"), [(7, "bucket=7"), (1, "bucket=1")])
def test_buckets_divide_the_context(bucket: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        losses_by_position(tiny_model("llama-gqa"), [np.zeros(32, int)], context=32, bucket=bucket)


def test_short_documents_are_named() -> None:
    with pytest.raises(ValueError, match=r"documents\[1\] has 31 tokens"):
        losses_by_position(
            tiny_model("llama-gqa"), [np.zeros(32, int), np.zeros(31, int)], context=32, bucket=8
        )
