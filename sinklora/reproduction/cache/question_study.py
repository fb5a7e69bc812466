"""Fig. 6's own measure: multiple-choice questions answered through a cache, by lm-evaluation-harness.

OpenBookQA for models that know the world; for the embedded base model, which knows Python, questions of the
same format: which of four lines comes next in a file. Answers are run directories, read back the next time.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.hf.device import default_device
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, NotNegative, check_fields
from sinklora.records.files import atomic_write, file_hash
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.cache.study import QUESTIONS, CacheStudy, base_dtype, base_key
from sinklora.reproduction.longbench.python_sources import plain_lines
from sinklora.train.fitting import longest
from sinklora.train.sources import CorpusSpec, read_documents

Metric = Literal["acc", "acc_norm"]

OPENBOOKQA = "openbookqa"  # the harness's task, whose questions come from the hub

NEXT_LINE = "next-line"

NEXT_LINE_CHARACTERS = 4_000  # of a file that a question is made from, at least

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
    records: list[dict[str, Any]] = []
    for document in chance.sample(list(documents), len(documents)):
        if len(records) == questions:
            break
        question = _next_line(document.splitlines(), tokenizer, tokens, chance)
        if question is not None:
            records.append({"id": f"{seed}-{len(records)}", **question})
    if len(records) < questions:
        raise ValueError(
            f"questions={questions}: only {len(records)} found in {len(documents)} documents with "
            f"tokens={tokens}; give more documents, or ask for fewer"
        )
    return records


def _next_line(
    lines: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int, chance: random.Random
) -> dict[str, Any] | None:
    by_indent: dict[int, list[int]] = {}
    for i in plain_lines(lines):
        if len(lines[i].strip()) >= SHORTEST:
            by_indent.setdefault(len(lines[i]) - len(lines[i].lstrip()), []).append(i)
    # The harness puts a blank before a choice: it is the last one of the line's indentation.
    places = [(indent, i) for indent, numbers in by_indent.items() if indent for i in numbers[:-3] if i > 0]
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


@dataclass(frozen=True)
class QuestionStudy:
    """Which questions a base is asked: those of `file`, in OpenBookQA's format (None: the hub's own).

    At most `limit` of them, each after `few_shot` questions of the file `shown` with their answers.
    `prompt_tokens`: for which length rows say how a budget is split; `metric`: which of the harness's two
    ways to choose (see `openbookqa.answers`).
    Raises ValueError or FileNotFoundError for questions that cannot be asked or show their answers.
    """

    base: str
    file: str | None
    shown: str | None = None
    few_shot: NotNegative = 0
    limit: Count | None = None
    prompt_tokens: Count = 384
    metric: Metric = "acc"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.file is None and self.shown is not None:
            raise ValueError(f"shown={self.shown!r}: OpenBookQA from the hub has its own questions to show")
        if self.file is not None and self.few_shot and self.shown is None:
            raise ValueError(f"few_shot={self.few_shot}: name a file of questions to show (shown)")
        self.task()

    def task(self) -> dict[str, Any] | str:
        """What lm-evaluation-harness is given."""
        from sinklora.evaluate.openbookqa import openbookqa_task

        return OPENBOOKQA if self.file is None else openbookqa_task(self.file, self.shown)

    def key(self) -> dict[str, Any]:
        """What identifies the questions and how they are asked."""
        return {
            "questions": OPENBOOKQA if self.file is None else file_hash(Path(self.file)),
            "shown": None if self.shown is None else file_hash(Path(self.shown)),
            "few_shot": self.few_shot,
            "limit": self.limit,
            **({} if self.metric == "acc" else {"metric": self.metric}),
        }


def question_file(
    name: str, study: CacheStudy, *, questions: int, tokens: int, folder: Path = Path("runs")
) -> str | None:
    """The file of questions that a name stands for.

    "next-line": made in `folder` from the study's corpus, by its first seed; "openbookqa": None, for it comes
    from the hub; any other name is a file's own.
    """
    if name != NEXT_LINE:
        return None if name == OPENBOOKQA else name
    corpus = dataclasses.replace(study.corpus, min_characters=NEXT_LINE_CHARACTERS)
    made = write_next_line_questions(
        corpus, study.base, questions=questions, tokens=tokens, seed=study.seeds[0], folder=folder
    )
    return str(made)


def answer_questions(
    study: QuestionStudy, chosen: Mapping[str, Sequence[CachePolicy]], *, runs: Path = Path("runs")
) -> pd.DataFrame:
    """Whether each question is answered right through every policy's cache, in the columns of
    `cache.study.measure`.

    `chosen`: name -> the policy at each budget (a fraction of the question with what is shown before it); the
    full cache is asked as well. `rows.attrs` record the questions (`data`) and the `runs`.
    """
    data = study.key()
    loaded: list[Any] = []  # the LMEvalModel, when something is missing
    used: list[Path] = []
    frames = []
    for name, policy in [("full", Full()), *((n, p) for n, ps in chosen.items() for p in ps)]:
        spec = {**base_key(study.base), "data": data, "policy": policy_key(policy)}
        work = partial(_answer, study, policy, loaded)
        right = remember(spec, work, runs=runs, prefix="questions", name="right", used=used)
        rows = pd.DataFrame({"measure": QUESTIONS, "item": list(right), "value": map(float, right.values())})
        budget = 1.0 if name == "full" else policy.budget
        split = policy.described_split(study.prompt_tokens)
        frames.append(rows.assign(policy=name, budget=budget, split=split))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def with_answers(rows: pd.DataFrame, answered: pd.DataFrame | None) -> pd.DataFrame:
    """Rows measured on documents and, where questions were asked, rows of answers, in one frame.

    Its `attrs` tell apart the data, of the `documents` and of the `questions`, and list the runs of both.
    """
    parts = {"documents": rows} | ({} if answered is None else {"questions": answered})
    frame = pd.concat(parts.values(), ignore_index=True)
    frame.attrs["data"] = {name: part.attrs["data"] for name, part in parts.items()}
    frame.attrs["runs"] = [run for part in parts.values() for run in part.attrs["runs"]]
    return frame


def _answer(study: QuestionStudy, policy: CachePolicy, loaded: list[Any]) -> Mapping[str, bool]:
    from sinklora.evaluate.lm_eval_model import LMEvalModel
    from sinklora.evaluate.openbookqa import answers

    if not loaded:
        path = model_path(study.base)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=base_dtype(study.base))
        loaded.append(LMEvalModel(model.to(default_device()), tokenizer=tokenizer, batch_size=len(LETTERS)))
    reader = loaded[0]
    reader.policy = policy
    return answers(reader, study.task(), limit=study.limit, few_shot=study.few_shot, metric=study.metric)
