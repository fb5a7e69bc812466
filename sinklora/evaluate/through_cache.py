"""What a cache budget costs: perplexity of the rest of a document, and recall of a planted number (Fig. 6).

Eviction is real: the model reads a prompt into a `BudgetCache`, and everything after it is predicted through
what the cache has kept, token by token.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.evaluate.pass_keys import (
    CacheFactory,
    check_answering,
    is_right,
    pass_key_documents,
    written_answers,
)
from sinklora.hf.device import input_device
from sinklora.hf.rope import forget_longest_input
from sinklora.train.retrieval_documents import NeedleDocument


@torch.inference_mode()
def continuation_nll(
    model: PreTrainedModel,
    documents: Sequence[np.ndarray],
    make_cache: CacheFactory,
    *,
    prompt_tokens: int,
    scored_tokens: int,
    batch_size: int = 16,
    progress: bool = True,
) -> np.ndarray:
    """Cross-entropy (nats, [documents, scored_tokens]) of the tokens after a prompt, through a cache.

    Of each document the first `prompt_tokens` are read at once, then one token after the other. Raises
    ValueError where a document is shorter than both together, or the model is in training mode.
    """
    needed = prompt_tokens + scored_tokens
    check_answering(model, prompt_tokens=prompt_tokens, scored_tokens=scored_tokens, batch_size=batch_size)
    if not documents or min(map(len, documents)) < needed:
        raise ValueError(f"documents: expected at least one, each of {needed} tokens or more")
    rows = torch.from_numpy(np.stack([np.asarray(d[:needed], dtype=np.int64) for d in documents]))
    batch_losses = []
    batches = rows.to(input_device(model)).split(batch_size)
    for batch in tqdm(batches, desc="continuations", disable=not progress):
        cache, ids = make_cache(), batch[:, :prompt_tokens]
        forget_longest_input(model)
        losses = []
        for position in range(prompt_tokens, needed):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[:, -1]
            target = batch[:, position]
            losses.append(torch.nn.functional.cross_entropy(logits.float(), target, reduction="none"))
            ids = target[:, None]
        batch_losses.append(torch.stack(losses, 1).cpu())
    return torch.cat(batch_losses).numpy()


def pass_keys(
    tokenizer: PreTrainedTokenizerBase, *, tokens: int, trials: int, seed: int
) -> list[NeedleDocument]:
    """Pass-key documents (the paper's wording) of at most `tokens` tokens, the key's depth swept evenly."""
    rng = random.Random(f"cache budget/{seed}/{tokens}")
    return pass_key_documents(rng, tokenizer, tokens=tokens, trials=trials, wording=0)


def recalled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[NeedleDocument],
    make_cache: CacheFactory,
    *,
    question_later: bool = False,
    batch_size: int = 16,
    progress: bool = True,
) -> np.ndarray:
    """Whether each document's answer is given back exactly (see `written_answers`): bool [documents]."""
    answers = written_answers(
        model,
        tokenizer,
        documents,
        make_cache,
        question_later=question_later,
        batch_size=batch_size,
        progress=progress,
    )
    return np.array([is_right(text, d) for text, d in zip(answers, documents, strict=True)])
