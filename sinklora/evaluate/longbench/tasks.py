"""The 21 data sets of LongBench (v1): categories and languages here, prompts, generation lengths and metrics
from the installed lm-evaluation-harness.
"""

import importlib.util
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jinja2 import BaseLoader, Environment, StrictUndefined

from sinklora.records.checks import check_choice

CATEGORIES: dict[str, tuple[str, ...]] = {  # in the order of LongLoRA's benchmark table
    "Single-Doc QA": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "Multi-Doc QA": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "Summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "Few-shot Learning": ("trec", "triviaqa", "samsum", "lsht"),
    "Code Completion": ("lcc", "repobench-p"),
    "Synthetic Tasks": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
}

CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")

FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")  # whatever a model writes after one line does not count

PLAIN_PROMPT = (*FIRST_LINE, "lcc", "repobench-p")  # given to chat models too without their chat format

# Generated stand-ins (`reproduction/longbench/synthetic_sets.py`), one per category; the tasks they borrow.
SMALL: dict[str, str] = {
    "small_multifieldqa_en": "multifieldqa_en",
    "small_hotpotqa": "hotpotqa",
    "small_gov_report": "gov_report",
    "small_trec": "trec",
    "small_lcc": "lcc",
    "small_passage_retrieval_en": "passage_retrieval_en",
}

# White space in which LongBench's own prompts differ from the harness's: it decides how an answer begins.
ENDINGS = {"lcc": "\n", "repobench-p": "\n", "passage_count": " ", "passage_retrieval_en": " "}

BLANK_LINE_BEFORE_INPUT = ("triviaqa", "samsum")

EXTRA = "LongBench needs lm-evaluation-harness with its LongBench tasks; run: pip install 'sinklora[eval]'"


@dataclass(frozen=True)
class Dataset:
    """A data set's name, its category, and its language: `en`, `zh` or `code`."""

    name: str
    category: str
    language: str


def _language(name: str, category: str) -> str:
    if category == "Code Completion":
        return "code"
    return "zh" if name in CHINESE else "en"


DATASETS: dict[str, Dataset] = {
    name: Dataset(name, category, _language(name, category))
    for category, names in CATEGORIES.items()
    for name in names
}


@dataclass(frozen=True)
class Task:
    """How a data set is asked and scored: a jinja template of the prompt, the greatest number of tokens to
    generate, and the name of the metric's function.
    """

    template: str
    max_new_tokens: int
    metric: str

    def prompt(self, context: str, question: str) -> str:
        """The prompt; `question` is what LongBench's records call `input`."""
        # The harness renders with the same settings; versions differ in what they call the question.
        environment = Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        template = environment.from_string(self.template)
        return template.render(context=context, question=question, input=question)


def scored_as(dataset: str) -> str:
    """The one of the 21 data sets whose task `dataset` has: its own name, or what a small one stands for.

    Raises ValueError for a name that is neither.
    """
    check_choice("dataset", dataset, (*DATASETS, *SMALL))
    return SMALL.get(dataset, dataset)


@cache
def task_of(dataset: str) -> Task:
    """Prompt, generation length and metric of a data set.

    Raises ValueError for an unknown data set, ImportError naming the extra where the harness is missing.
    """
    name = scored_as(dataset)
    file = _library_folder() / f"{name}.yaml"
    settings = yaml.load(file.read_text(encoding="utf-8"), Loader=_TaskLoader)
    metric = re.fullmatch(r"metrics\.get_(\w+?)(_with)?_score", settings["process_results"])
    if metric is None:
        raise ValueError(f"{file}: process_results is {settings['process_results']!r}; update lm-eval")
    template = settings["doc_to_text"]
    if name in ENDINGS:
        template = template.rstrip() + ENDINGS[name]
    if name in BLANK_LINE_BEFORE_INPUT:
        template = re.sub(r"\}\}\n+\{\{", "}}\n\n{{", template)
    return Task(template, int(settings["generation_kwargs"]["max_gen_toks"]), f"{metric[1]}_score")


@cache
def library_metrics() -> ModuleType:
    """The harness's module of LongBench metrics, loaded from its file as the harness itself does: importing
    the package would import every task. Raises ImportError naming the extra where something is missing.
    """
    file = _library_folder() / "metrics.py"
    spec = importlib.util.spec_from_file_location("sinklora_longbench_metrics", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded. {EXTRA}")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fuzzywuzzy asks for a faster library, which would score otherwise
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise ImportError(EXTRA) from error
    return module


def _library_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "tasks" / "longbench"
        if (folder / "metrics.py").is_file():
            return folder
    raise ImportError(EXTRA)


class _TaskLoader(yaml.SafeLoader):
    """Reads the harness's files without running what they name: `!function` gives the function's name."""


def _function_name(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    return node.value


_TaskLoader.add_constructor("!function", _function_name)
