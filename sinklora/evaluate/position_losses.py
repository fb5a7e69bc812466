"""Loss by position: how well a model predicts the tokens that stand so far into its context."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from sinklora.evaluate.perplexity import evaluation_mode
from sinklora.evaluate.scored_logits import logits_function, scored_losses
from sinklora.hf.device import input_device
from sinklora.hf.rope import find_transformer
from sinklora.records.checks import check_counts


def losses_by_position(
    model: nn.Module,
    documents: Sequence[NDArray[np.integer[Any]]],
    *,
    context: int,
    bucket: int,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Mean nats a token of every `bucket` positions: [documents, context / bucket].

    The first `context` tokens of each document are read at once; the first bucket lacks the first token,
    which nothing predicts. Raises ValueError for a bucket that does not divide the context, and for a shorter
    document.
    """
    check_counts(2, bucket=bucket)
    if context % bucket:
        raise ValueError(f"bucket={bucket}: expected a divisor of context={context}")
    short = [index for index, document in enumerate(documents) if len(document) < context]
    if short:
        raise ValueError(
            f"documents[{short[0]}] has {len(documents[short[0]])} tokens: expected context={context}"
        )
    bucket_losses = []
    with evaluation_mode(model), torch.inference_mode():
        logits_of = logits_function(model)
        for document in tqdm(documents, desc=f"positions to {context}", disable=not progress):
            ids = torch.from_numpy(np.asarray(document[:context], dtype=np.int64))[None]
            ids = ids.to(input_device(find_transformer(model)))
            scored = torch.ones(1, context - 1, dtype=torch.bool, device=ids.device)
            unpredicted = torch.full((1,), torch.nan, dtype=torch.float64)
            losses = torch.cat([unpredicted, scored_losses(logits_of, ids, scored)])
            bucket_losses.append(losses.view(-1, bucket).nanmean(-1).numpy())
    return np.array(bucket_losses)
