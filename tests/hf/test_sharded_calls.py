"""Models called with a part of a row: what the shard does not know of may not be dropped without a word."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from helpers import assert_close
from sinklora.attention.patterns import SF
from sinklora.attention.sequence_parallel.shard import SequenceShard
from sinklora.hf.document_ids import LostDocumentsError
from sinklora.hf.models import use_pattern
from tiny_models import make_batch, tiny_model


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
def test_what_the_shard_does_not_know_of_is_refused(training: bool) -> None:
    model = use_pattern(tiny_model("llama-gqa"), SF).train(training)
    padded, packed = make_batch("left-padded"), make_batch("packed")
    ids, tokens = padded.inputs["input_ids"], padded.inputs["input_ids"].shape[1]

    def logits(inputs: dict[str, Tensor], documents: Tensor) -> Tensor:
        return model(**inputs, use_cache=False, sequence_shard=SequenceShard(documents)).logits

    one = torch.zeros_like(ids)
    four = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    for mask in (padded.inputs["attention_mask"], four):
        with pytest.raises(ValueError, match="attention_mask cannot be combined with sequence_shard"):
            logits({"input_ids": ids, "attention_mask": mask}, one)
    with pytest.raises(LostDocumentsError, match="restart inside what the document_ids"):
        logits(dict(packed.inputs), one)
    with pytest.raises(LostDocumentsError, match="cu_seq_lens_q names documents"):
        logits({"input_ids": ids, "cu_seq_lens_q": torch.tensor([0, 5, ids.numel()])}, one)

    for batch in (padded, packed):
        expected = model(**batch.inputs, use_cache=False).logits
        own = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
        assert_close(logits(own, batch.document_ids)[batch.real], expected[batch.real], atol=1e-5)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}  # says nothing: may be given
    assert torch.equal(logits(whole, one), logits({"input_ids": ids}, one))
