"""What a cache budget costs: perplexity of the rest of a document, and recall of a planted number (Fig. 6).

Eviction is real: the model reads a prompt into a `BudgetCache`, and everything after it is predicted through
what the cache has kept, token by token.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.train.retrieval_documents import NeedleDocument, fitted_pass_key

CacheFactory = Callable[[], Cache]


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
    _check(model, prompt_tokens=prompt_tokens, scored_tokens=scored_tokens, batch_size=batch_size)
    if not documents or min(map(len, documents)) < needed:
        raise ValueError(f"documents: expected at least one, each of {needed} tokens or more")
    rows = torch.from_numpy(np.stack([np.asarray(d[:needed], dtype=np.int64) for d in documents]))
    found = []
    for batch in tqdm(rows.to(model.device).split(batch_size), desc="continuations", disable=not progress):
        cache, given = make_cache(), batch[:, :prompt_tokens]
        losses = []
        for position in range(prompt_tokens, needed):
            logits = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            target = batch[:, position]
            losses.append(torch.nn.functional.cross_entropy(logits.float(), target, reduction="none"))
            given = target[:, None]
        found.append(torch.stack(losses, 1).cpu())
    return torch.cat(found).numpy()


def pass_keys(
    tokenizer: PreTrainedTokenizerBase, *, tokens: int, trials: int, seed: int
) -> list[NeedleDocument]:
    """Pass-key documents (the paper's wording) of at most `tokens` tokens, the key's depth swept evenly."""
    rng = random.Random(f"cache budget/{seed}/{tokens}")

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    depths = [trial / max(1, trials - 1) for trial in range(trials)]
    return [fitted_pass_key(rng, count, tokens, depth, wording=0) for depth in depths]


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


def is_right(answer: str, document: NeedleDocument) -> bool:
    """Whether the first number that was written, all its digits, is the planted one."""
    stripped = answer.lstrip()
    end = next((i for i, character in enumerate(stripped) if not character.isdigit()), len(stripped))
    return stripped[:end] == document.answer


@torch.inference_mode()
def written_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[NeedleDocument],
    make_cache: CacheFactory = DynamicCache,
    *,
    question_later: bool = False,
    batch_size: int = 16,
    progress: bool = True,
) -> list[str]:
    """What the model writes after each document's question, greedy decoding.

    The question is read with the rest of the prompt; `question_later` reads it after the context has been
    evicted, so that no query of its has looked at what was planted. Raises ValueError in training mode, and
    for questions of different lengths (several wordings) in one batch.
    """
    _check(model, batch_size=batch_size)
    found: list[str] = []
    batches = range(0, len(documents), batch_size)
    for begin in tqdm(batches, desc="planted numbers", disable=not progress):
        batch = documents[begin : begin + batch_size]
        contexts = [tokenizer(d.context)["input_ids"] for d in batch]
        questions = [tokenizer(d.question, add_special_tokens=False)["input_ids"] for d in batch]
        found += _answers(model, tokenizer, contexts, questions, make_cache(), question_later)
    return found


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[list[int]],
    questions: list[list[int]],
    cache: Cache,
    question_later: bool,
) -> list[str]:
    if len({len(question) for question in questions}) > 1:
        raise ValueError("documents: expected questions of one length in tokens (one wording)")
    longest = max(map(len, contexts))
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    pad = [[filler] * (longest - len(context)) for context in contexts]
    ids = torch.tensor([p + c + q for p, c, q in zip(pad, contexts, questions, strict=True)])
    mask = torch.ones_like(ids)
    for row, padding in enumerate(pad):
        mask[row, : len(padding)] = 0
    ids, mask = ids.to(model.device), mask.to(model.device)
    if question_later:
        read = mask[:, :longest]
        positions = (read.cumsum(-1) - 1).clamp(min=0)
        model(
            ids[:, :longest],
            attention_mask=read,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    # The answer's tokens are a blank and five digits, one token each.
    written: Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        max_new_tokens=7,
        do_sample=False,
        pad_token_id=filler,
    )
    texts: list[str] = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def _check(model: PreTrainedModel, **counts: int) -> None:
    if model.training:
        raise ValueError("model: is in training mode, where a cache cannot be used; call model.eval()")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
