"""Fig. 6's own measure: multiple-choice questions answered through a cache, by lm-evaluation-harness.

OpenBookQA for models that know the world; for the embedded base model, which knows Python, questions of the
same format: which of four lines comes next in a file. Answers are run directories, read back the next time.
"""

import json
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.fitting import longest
from sinklora.hf.device import default_device
from sinklora.pretrained.fetch import model_path
from sinklora.records.files import atomic_write, file_hash
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.cache.study import QUESTIONS, base_dtype, base_key
from sinklora.reproduction.longbench.python_sources import plain_lines
from sinklora.train.sources import CorpusSpec, read_documents

Metric = Literal["acc", "acc_norm"]

LETTERS = "ABCD"  # OpenBookQA has four choices

SHORTEST = 10  # characters of a line that is asked for


def next_line_questions(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, questions: int, tokens: int, seed: int
) -> list[dict[str, Any]]:
    """Questions in OpenBookQA's format, at most one a document: a file up to a line, of at most `tokens`
    tokens, and four lines to choose from; the wrong ones come later in the file, equally indented.

    The same arguments give the same questions. Raises ValueError where documents and tokens give too few.
    """
    chance = random.Random(f"next line/{seed}/{tokens}")
    found: list[dict[str, Any]] = []
    for document in chance.sample(list(documents), len(documents)):
        if len(found) == questions:
            break
        question = _next_line(document.splitlines(), tokenizer, tokens, chance)
        if question is not None:
            found.append({"id": f"{seed}-{len(found)}", **question})
    if len(found) < questions:
        raise ValueError(
            f"questions={questions}: only {len(found)} found in {len(documents)} documents with "
            f"tokens={tokens}; give more documents, or ask for fewer"
        )
    return found


def _next_line(
    lines: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int, chance: random.Random
) -> dict[str, Any] | None:
    by_indent: dict[int, list[int]] = {}
    for i in plain_lines(lines):
        if len(lines[i].strip()) >= SHORTEST:
            by_indent.setdefault(len(lines[i]) - len(lines[i].lstrip()), []).append(i)
    # The harness puts a blank before a choice: it is the last one of the line's indentation.
    places = [(indent, i) for indent, found in by_indent.items() if indent for i in found[:-3] if i > 0]
    if not places:
        return None
    indent, place = chance.choice(places)
    answer, context = lines[place].strip(), lines[:place]
    wrong = {lines[i].strip() for i in by_indent[indent] if i > place} - {line.strip() for line in context}
    wrong -= {answer}
    if len(wrong) < len(LETTERS) - 1:
        return None

    def stem(count: int) -> str:
        return "\n".join(lines[place - count : place]) + "\n" + " " * (indent - 1)

    count = longest(place, lambda n: len(tokenizer(stem(n))["input_ids"]) <= tokens)
    # A question with less than half of the tokens would be asked under another budget than the rest.
    if 2 * len(tokenizer(stem(count))["input_ids"]) < tokens:
        return None
    choices = [answer, *chance.sample(sorted(wrong), len(LETTERS) - 1)]
    chance.shuffle(choices)
    return {
        "question_stem": stem(count),
        "choices": {"text": choices, "label": list(LETTERS)},
        "answerKey": LETTERS[choices.index(answer)],
    }


def write_next_line_questions(
    corpus: CorpusSpec, base: str, *, questions: int, tokens: int, seed: int, folder: Path = Path("runs")
) -> Path:
    """A file of next-line questions (jsonl) from a corpus of Python sources; returns its path."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(base))
    texts = [document.text for document in read_documents(corpus)[0]]
    made = next_line_questions(texts, tokenizer, questions=questions, tokens=tokens, seed=seed)
    path = folder / f"next-line-{corpus.split}-{questions}-{tokens}-{seed}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(question) + "\n" for question in made))
    return path


def answer_questions(
    base: str,
    data_files: str | Path | None,
    chosen: Mapping[str, Sequence[CachePolicy]],
    *,
    train_files: str | Path | None = None,
    few_shot: int = 0,
    limit: int | None = None,
    prompt_tokens: int = 384,
    metric: Metric = "acc",
    runs: Path = Path("runs"),
) -> pd.DataFrame:
    """Whether each question is answered right through every policy's cache, in the columns of
    `cache.study.measure`.

    `data_files`: questions in OpenBookQA's format; None is OpenBookQA itself, from the hub. `chosen`: name ->
    the policy at each budget (a fraction of the question with what is shown before it); the full cache is
    asked as well. `prompt_tokens`: for which length the rows say how a budget is split; `metric`: which
    of the harness's two ways to choose (see `openbookqa.answers`).
    `rows.attrs` record the questions (`data`) and the `runs`. Raises what `check_arguments` raises, before a
    model is loaded.
    """
    check_arguments(data_files, train_files, few_shot)
    from sinklora.evaluate.openbookqa import openbookqa_task

    task = "openbookqa" if data_files is None else openbookqa_task(data_files, train_files)
    data = {
        "questions": "openbookqa" if data_files is None else file_hash(Path(data_files)),
        "shown": None if train_files is None else file_hash(Path(train_files)),
        "few_shot": few_shot,
        "limit": limit,
        **({} if metric == "acc" else {"metric": metric}),
    }
    loaded: list[Any] = []  # the LMEvalModel, when something is missing
    used: list[Path] = []
    frames = []
    for name, policy in [("full", Full()), *((n, p) for n, ps in chosen.items() for p in ps)]:
        spec = {**base_key(base), "data": data, "policy": policy_key(policy)}
        work = partial(_answer, base, policy, task, limit, few_shot, loaded, metric)
        right = remember(spec, work, runs=runs, prefix="questions", name="right", used=used)
        rows = pd.DataFrame({"measure": QUESTIONS, "item": list(right), "value": map(float, right.values())})
        budget = 1.0 if name == "full" else policy.budget
        frames.append(rows.assign(policy=name, budget=budget, split=policy.described_split(prompt_tokens)))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def check_arguments(data_files: str | Path | None, train_files: str | Path | None, few_shot: int) -> None:
    """Raise ValueError or FileNotFoundError for questions that cannot be asked or show their answers."""
    from sinklora.evaluate.openbookqa import openbookqa_task

    if data_files is not None:
        if few_shot and train_files is None:
            raise ValueError(f"few_shot={few_shot}: name a file of questions to show (train_files)")
        openbookqa_task(data_files, train_files)
    elif train_files is not None:
        raise ValueError(
            f"train_files={str(train_files)!r}: OpenBookQA from the hub has its own questions to show"
        )


def _answer(
    base: str,
    policy: CachePolicy,
    task: dict[str, Any] | str,
    limit: int | None,
    few_shot: int,
    loaded: list[Any],
    metric: Metric = "acc",
) -> Mapping[str, bool]:
    from sinklora.evaluate.lm_eval_model import LMEvalModel
    from sinklora.evaluate.openbookqa import answers

    if not loaded:
        path = model_path(base)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=base_dtype(base))
        loaded.append(LMEvalModel(model.to(default_device()), tokenizer=tokenizer, batch_size=len(LETTERS)))
    reader = loaded[0]
    reader.policy = policy
    return answers(reader, task, limit=limit, few_shot=few_shot, metric=metric)
