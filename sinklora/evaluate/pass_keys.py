"""Pass-key retrieval: is a five-digit key, stated twice in filler, given back when asked for (paper 4.1.5)?

Documents are drawn with the key at every depth in turn; a model answers them greedily, in batches, through
any cache; the number that an answer begins with counts.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.evaluate.statistics import Accuracy
from sinklora.hf.device import input_device
from sinklora.hf.greedy import GREEDY
from sinklora.hf.rope import forget_longest_input
from sinklora.records.checks import check_counts
from sinklora.train.retrieval_documents import NeedleDocument, fitted_pass_key

CacheFactory = Callable[[], Cache]

ANSWER_TOKENS = 7  # a blank and five digits, one token each, and what follows


def pass_key_documents(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    trials: int,
    wording: int | None = None,
) -> list[NeedleDocument]:
    """`trials` documents of at most `tokens` tokens with their answers, the key at every depth in turn.

    The first has its key first, the last has it last. Keys, fillers and wordings are drawn from `rng`;
    `wording` 0 keeps to the paper's own. Raises ValueError for `trials` below 1 and for `tokens` too few for
    a document.
    """
    check_counts(trials=trials)

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    depths = [trial / max(1, trials - 1) for trial in range(trials)]
    return [fitted_pass_key(rng, count, tokens, depth, wording) for depth in depths]


def is_right(answer: str, document: NeedleDocument) -> bool:
    """Whether the number that the answer begins with is the planted one, all its digits and no more."""
    number = re.match(r"\s*(\d+)", answer)
    return number is not None and number[1] == document.answer


@torch.inference_mode()
def written_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[NeedleDocument],
    make_cache: CacheFactory = DynamicCache,
    *,
    question_later: bool = False,
    new_tokens: int = ANSWER_TOKENS,
    batch_size: int = 16,
    progress: bool = True,
) -> list[str]:
    """What the model writes after each document's question, greedy decoding.

    Context and question are tokenized apart. The question is read with the rest of the prompt;
    `question_later` reads it after the context has been evicted, so that no query of its has looked at what
    was planted. Raises ValueError in training mode, and for questions of different lengths (several wordings)
    in one batch.
    """
    check_answering(model, batch_size=batch_size, new_tokens=new_tokens)
    answers: list[str] = []
    batches = range(0, len(documents), batch_size)
    for begin in tqdm(batches, desc="planted numbers", disable=not progress):
        ids, mask, context = _prompts(tokenizer, documents[begin : begin + batch_size])
        ids, mask = ids.to(input_device(model)), mask.to(input_device(model))
        cache = make_cache()
        forget_longest_input(model)
        if question_later:
            _read(model, ids[:, :context], mask[:, :context], cache)
        written: Tensor = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            max_new_tokens=new_tokens,
            pad_token_id=_filler(tokenizer),
            **GREEDY,
        )
        answers += tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    return answers


def _prompts(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[NeedleDocument]
) -> tuple[Tensor, Tensor, int]:
    """Token ids and mask, padded on the left, and how many columns the contexts take."""
    contexts = [tokenizer(d.context)["input_ids"] for d in documents]
    questions = [tokenizer(d.question, add_special_tokens=False)["input_ids"] for d in documents]
    if len({len(question) for question in questions}) > 1:
        raise ValueError("documents: expected questions of one length in tokens (one wording)")
    longest = max(map(len, contexts))
    pads = [longest - len(context) for context in contexts]
    filler = _filler(tokenizer)
    ids = [[filler] * p + c + q for p, c, q in zip(pads, contexts, questions, strict=True)]
    mask = [[0] * p + [1] * (len(row) - p) for p, row in zip(pads, ids, strict=True)]
    return torch.tensor(ids), torch.tensor(mask), longest


def _filler(tokenizer: PreTrainedTokenizerBase) -> Any:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _read(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Cache) -> None:
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    model(ids, **inputs, use_cache=True, logits_to_keep=1)


def pass_key_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    trials: int,
    seed: int,
    wording: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Accuracy:
    """Exact-match accuracy over `pass_key_documents` drawn from `seed`, each prompt tokenized as a whole.

    Raises ValueError in training mode and for what `pass_key_documents` refuses.
    """
    check_answering(model, batch_size=batch_size)
    rng = random.Random(f"pass key/{seed}/{tokens}")
    documents = pass_key_documents(rng, tokenizer, tokens=tokens, trials=trials, wording=wording)
    whole = [replace(document, question="") for document in documents]
    wrote = written_answers(
        model, tokenizer, whole, new_tokens=ANSWER_TOKENS + 1, batch_size=batch_size, progress=progress
    )
    return Accuracy(sum(map(is_right, wrote, documents)), trials)


def check_answering(model: PreTrainedModel, **counts: int) -> None:
    """Raise ValueError for a model in training mode and for counts below 1."""
    if model.training:
        raise ValueError("model: is in training mode, where a cache cannot be used; call model.eval()")
    check_counts(**counts)
