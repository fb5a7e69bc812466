"""Greedy predictions for LongBench's records by any causal language model under any cache, resumable."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.evaluate.longbench.records import Prediction, Record, resume_predictions
from sinklora.evaluate.longbench.tasks import PLAIN_PROMPT, scored_as, task_of
from sinklora.evaluate.perplexity import evaluation_mode
from sinklora.hf.device import input_device
from sinklora.hf.greedy import GREEDY
from sinklora.records.checks import Count, check_counts, check_value
from sinklora.records.jsonl import json_line

PromptFormat = Callable[[str], str]

# Of templates that write the day's date: prompts would be others tomorrow. Llama 3's writes this day where it
# is told none.
_SAME_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro +%}"


def as_it_is(prompt: str) -> str:
    """The prompt format of a base model: none."""
    return prompt


def chat_format(tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """A prompt format that makes the prompt a user's turn in `tokenizer`'s chat template.

    For Llama-2-chat LongBench itself used `lambda prompt: f"[INST]{prompt}[/INST]"`. A template that writes
    the day's date writes 26 Jul 2024 every day.
    Raises ValueError, before any prompt, for a tokenizer without one.
    """
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path
        raise ValueError(f"tokenizer={name!r}: has no chat template; leave chat out, or give a chat model")

    # A template may write what tokenizing puts before every text, which must not stand there twice.
    again = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]

    template = tokenizer.get_chat_template()
    template = _SAME_DAY + template if "strftime_now" in template else template

    def formatted(prompt: str) -> str:
        turn = [{"role": "user", "content": prompt}]
        text = str(
            tokenizer.apply_chat_template(
                turn, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
        return text.removeprefix(str(tokenizer.bos_token)) if again else text

    return formatted


def truncate_middle(ids: Sequence[int], limit: int) -> list[int]:
    """`ids` if at most `limit`, else the first and last `limit // 2`: instructions stand at the ends.

    As in LongBench, an odd limit leaves `limit - 1`. Raises ValueError for a limit below 2.
    """
    check_counts(2, limit=limit)
    half = limit // 2
    return list(ids) if len(ids) <= limit else [*ids[:half], *ids[-half:]]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    record: Record,
    dataset: str,
    max_length: int,
    prompt_format: PromptFormat = as_it_is,
) -> list[int]:
    """Token ids of a record's prompt, its middle left out where it has more than `max_length` tokens.

    As in LongBench, the halves are text again before `prompt_format` and the tokenizer get them: a chat
    format comes on top of `max_length`, and at the seam a token or two may. Few-shot and code tasks are
    given without `prompt_format`.
    """
    prompt = task_of(dataset).prompt(record.context, record.input)
    ids = tokenizer(prompt)["input_ids"]
    kept = truncate_middle(ids, max_length)
    if len(kept) < len(ids):
        halves = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        prompt = "".join(str(tokenizer.decode(half, skip_special_tokens=True)) for half in halves)
    if scored_as(dataset) not in PLAIN_PROMPT:
        prompt = prompt_format(prompt)
    return list(tokenizer(prompt)["input_ids"])


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    dataset: str,
    *,
    max_length: int,
    out: Path,
    cache_factory: Callable[[], Any] | None = None,
    prompt_format: PromptFormat = as_it_is,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Greedy predictions for the first `limit` of `records` (all: None), appended to the file `out` as they
    are made; a file that has some already is continued.

    `max_length` tokens of prompt leave the model room for the task's generation length, or `max_new_tokens`
    in its place. `cache_factory` gives a fresh cache for every record (None: the model's own). A file knows
    its records, not its model and settings: use a new one for others.
    Raises ValueError for bad arguments, records of another data set, a file damaged other than by a kill
    while it was written (with the line), and one of other records.
    """
    task = task_of(dataset)
    check_request(records, dataset, max_length, max_new_tokens, limit)
    done = resume_predictions(out, records)
    chosen = records[:limit]
    out.parent.mkdir(parents=True, exist_ok=True)
    left = tqdm(
        chosen[len(done) :],
        desc=dataset,
        total=len(chosen),
        initial=min(len(done), len(chosen)),
        disable=not progress,
    )
    with out.open("a", encoding="utf-8") as file, evaluation_mode(model):
        for record in left:
            ids = prompt_ids(tokenizer, record, dataset, max_length, prompt_format)
            options = _stops(tokenizer, dataset) | {"max_new_tokens": max_new_tokens or task.max_new_tokens}
            text = _generate(model, tokenizer, ids, cache_factory, options)
            done.append(Prediction(text, record.answers, record.all_classes, record.length, record.id))
            file.write(json_line(done[-1].to_dict()))
            file.flush()
    return done[: len(chosen)]


def check_request(
    records: Sequence[Record],
    dataset: str,
    max_length: int,
    max_new_tokens: int | None = None,
    limit: int | None = None,
) -> None:
    """Raise ValueError for numbers out of range and for a record of another data set, as `predict` does."""
    check_counts(2, max_length=max_length)
    check_value("max_new_tokens", max_new_tokens, Count | None)
    check_value("limit", limit, Count | None)
    if wrong := [record for record in records if record.dataset != dataset]:
        raise ValueError(f"dataset={dataset!r}, but record {wrong[0].id!r} is of {wrong[0].dataset!r}")


def _stops(tokenizer: PreTrainedTokenizerBase, dataset: str) -> dict[str, Any]:
    """LongBench ends samsum's answers, which models go on from into dialogues of their own, at the first new
    line after the first token; other data sets only where the model ends.
    """
    if scored_as(dataset) != "samsum":
        return {}
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    return {"eos_token_id": [tokenizer.eos_token_id, newline], "min_new_tokens": 1}


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    cache_factory: Callable[[], Any] | None,
    options: dict[str, Any],
) -> str:
    """The text that follows `ids`, greedy."""
    prompt = torch.tensor([ids], device=input_device(model))
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if cache_factory is not None:
        options = {**options, "past_key_values": cache_factory()}
    generate: Any = model.generate
    written = generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=padding,
        **GREEDY,
        **options,
    )
    return str(tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True))
