"""How likely a model finds the right answers of LongBench's records through a cache.

What a small model writes itself is hardly ever right; what a cache costs the right answer shows all the same.
"""

from collections.abc import Callable, Sequence

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from sinklora.evaluate.longbench.predictions import PromptFormat, as_it_is, check_request, prompt_ids
from sinklora.evaluate.longbench.records import Record
from sinklora.evaluate.longbench.tasks import PLAIN_PROMPT, scored_as
from sinklora.evaluate.read_prompt import ReadPrompt
from sinklora.records.checks import check_counts


def answer_nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    dataset: str,
    make_cache: Callable[[], Cache],
    *,
    max_length: int,
    answer_tokens: int,
    prompt_format: PromptFormat = as_it_is,
    progress: bool = True,
) -> list[float]:
    """Nats a token of each record's likeliest right answer, of which the first `answer_tokens` count.

    Prompts are those of `predict`. Their last token is read after the rest has been evicted, so that all of
    an answer is predicted through what the cache has kept. Raises ValueError for bad arguments, records of
    another data set, and an answer without any token.
    """
    check_request(records, dataset, max_length)
    check_counts(answer_tokens=answer_tokens)
    plain = prompt_format is as_it_is or scored_as(dataset) in PLAIN_PROMPT
    nats = []
    for record in tqdm(records, desc=dataset, disable=not progress):
        *prompt, last = prompt_ids(tokenizer, record, dataset, max_length, prompt_format)
        answers = [
            tokenizer(" " + answer if plain else answer, add_special_tokens=False)["input_ids"]
            for answer in record.answers
        ]
        if not all(answers):
            raise ValueError(f"records: an answer of {record.id!r} is empty, so that nothing can be likely")
        read = ReadPrompt(model, prompt, make_cache())
        losses = read.nats([[last, *answer[:answer_tokens]] for answer in answers])
        nats.append(min(sum(of_answer[1:]) / (len(of_answer) - 1) for of_answer in losses))
    return nats
