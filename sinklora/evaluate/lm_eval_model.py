"""lm-evaluation-harness under a cache budget: all its tasks, scoring and generating through the cache.

    python -m sinklora.evaluate.lm_eval_model --model sinklora \
        --model_args pretrained=data/base,kv=h2o,budget=0.2 --tasks openbookqa --data_files questions.jsonl

The arguments are those of `lm_eval`; ``--data_files`` reads OpenBookQA from a local file in the hub's format,
``--train_files`` the questions that ``--num_fewshot`` shows before each.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm

from sinklora.cache.policies import CachePolicy, make_policy, parse_budget
from sinklora.evaluate.longbench.records import json_lines
from sinklora.hf.budget_cache import BudgetCache, enable_budget_caches

try:
    import lm_eval
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError("lm-evaluation-harness is not installed: pip install 'sinklora[eval]'") from error

Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("sinklora")
class LMEvalModel(HFLM):
    """A causal language model that answers through a BudgetCache.

    `kv`: a name in `sinklora.cache.policies.POLICIES`, or a policy; `budget`: a fraction of the context, or
    tokens (none for full and for a policy); `prefill_chunk`: as in BudgetCache. Other arguments are those of
    the harness's own `hf` model. The context is read and evicted, then the continuation is scored token by
    token; a context that several continuations share is read once, and `batch_size` of them are scored at a
    time.
    Raises ValueError before a model is loaded.
    """

    def __init__(
        self,
        pretrained: Any,
        kv: str | CachePolicy = "full",
        budget: str | int | float | None = None,
        prefill_chunk: str | int | None = None,
        **arguments: Any,
    ) -> None:
        self.policy = kv if isinstance(kv, CachePolicy) else make_policy(kv, parse_budget(budget))
        self.prefill_chunk = None if prefill_chunk is None else int(prefill_chunk)
        super().__init__(pretrained=pretrained, backend="causal", **arguments)
        enable_budget_caches(self.model.eval())

    def new_cache(self) -> BudgetCache:
        """An empty cache for one request or batch."""
        return BudgetCache(self.model, self.policy, prefill_chunk=self.prefill_chunk)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding writes it) of each continuation, in order."""
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            by_context.setdefault(tuple(request[1]), []).append(index)
        found: dict[int, tuple[float, bool]] = {}
        for context, indices in tqdm(by_context.items(), disable=disable_tqdm, desc="contexts"):
            longest = max(len(requests[index][2]) for index in indices)
            ids = list(context)[-(self.max_length + 1 - longest) :]
            cache, logits = self._read(ids)
            for part in self._batches(indices):
                own = cache if part[-1] == indices[-1] else copy.deepcopy(cache)
                scores = self._score(own, logits, [requests[index][2] for index in part])
                found |= dict(zip(part, scores, strict=True))
            for index in indices:
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return [found[index] for index in range(len(requests))]

    def _batches(self, indices: list[int]) -> list[list[int]]:
        rows = self.batch_size if isinstance(self.batch_size, int) else 1  # "auto" says nothing of a cache
        return [indices[begin : begin + rows] for begin in range(0, len(indices), rows)]

    @torch.inference_mode()
    def _read(self, ids: list[int]) -> tuple[BudgetCache, torch.Tensor]:
        cache = self.new_cache()
        inputs = torch.tensor([ids], device=self.device)
        output = self.model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache, output.logits[:, -1]

    @torch.inference_mode()
    def _score(
        self, cache: BudgetCache, logits: torch.Tensor, continuations: list[list[int]]
    ) -> list[tuple[float, bool]]:
        """Continuations of what the cache has read, a row each; one that has ended repeats its last token."""
        longest = max(map(len, continuations))
        rows = [c + c[-1:] * (longest - len(c)) for c in continuations]
        tokens = torch.tensor(rows, device=self.device)
        cache.batch_repeat_interleave(len(rows))
        likely = logits.float().log_softmax(-1).expand(len(rows), -1)
        chosen, greedy = [], []
        for place in range(longest):
            if place:
                step = self.model(tokens[:, place - 1, None], past_key_values=cache, use_cache=True)
                likely = step.logits[:, -1].float().log_softmax(-1)
            chosen.append(likely.gather(-1, tokens[:, place, None])[:, 0].double())
            greedy.append(likely.argmax(-1) == tokens[:, place])
        scores, right = torch.stack(chosen, 1).cpu(), torch.stack(greedy, 1).cpu()
        return [
            (float(scores[row, : len(c)].sum()), bool(right[row, : len(c)].all()))
            for row, c in enumerate(continuations)
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, token by token. A fraction has no prompt here: raises ValueError."""
        if self.policy.bounded and isinstance(self.policy.budget, float):
            raise ValueError(
                f"budget={self.policy.budget}: rolling log-likelihoods have no prompt to take a fraction of; "
                "give the budget in tokens"
            )
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any
    ) -> torch.Tensor:
        generation["past_key_values"] = self.new_cache()
        written: torch.Tensor = super()._model_generate(context, max_length, stop, **generation)
        return written


def openbookqa_task(data_files: str | Path, train_files: str | Path | None = None) -> dict[str, Any]:
    """The harness's OpenBookQA on local files in the hub's format (jsonl), as a task configuration.

    Prompt, choices and metrics are the installed harness's. `train_files`: questions for few-shot prompts.
    Raises FileNotFoundError for a file that is not there, ValueError with file and line for a record that is
    no question.
    """
    files = {"test": data_files, **({} if train_files is None else {"train": train_files})}
    for name, file in zip(("data_files", "train_files"), files.values(), strict=False):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{name}={str(file)!r}: no such file")
        check_questions(Path(file))
    library = Path(lm_eval.__file__).parent / "tasks" / "openbookqa" / "openbookqa.yaml"
    config: dict[str, Any] = yaml.safe_load(library.read_text(encoding="utf-8"))
    for name in ("dataset_name", "training_split", "validation_split"):
        config.pop(name)
    if train_files is not None:
        config |= {"training_split": "train", "fewshot_split": "train"}
    local = {split: str(Path(file).resolve()) for split, file in files.items()}
    return config | {
        "task": "openbookqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": local},
    }


def check_questions(path: Path) -> None:
    """Raise ValueError for a file without records, and with the line for one not in OpenBookQA's format."""
    records = list(json_lines(path))
    if not records:
        raise ValueError(f"{path}: holds no questions")
    for place, fields in records:
        choices: Any = fields.get("choices")
        texts, labels = (choices.get(k) for k in ("text", "label")) if isinstance(choices, dict) else (0, 0)
        if not isinstance(fields.get("question_stem"), str):
            raise ValueError(
                f"{place}: 'question_stem' is {fields.get('question_stem')!r:.80}, expected text"
            )
        if not isinstance(texts, list) or not isinstance(labels, list) or not 1 < len(texts) == len(labels):
            raise ValueError(
                f"{place}: 'choices' is {choices!r:.80}, expected as many 'text' as 'label', two or more"
            )
        if fields.get("answerKey") not in labels:
            raise ValueError(
                f"{place}: 'answerKey' is {fields.get('answerKey')!r:.80}, expected one of {labels}"
            )


def answers(
    model: LMEvalModel, task: dict[str, Any] | str, *, limit: int | None = None, few_shot: int = 0
) -> dict[str, bool]:
    """Whether each question of a multiple-choice task is answered right, by the question's place in it.

    `task`: a name that the harness knows, or a configuration such as `openbookqa_task` makes; `limit`: only
    the first questions; `few_shot`: questions shown with their answers before each, 0: as the task says.
    Raises ValueError for `few_shot` of local questions without others to show.
    """
    if few_shot and isinstance(task, dict) and "fewshot_split" not in task:
        raise ValueError(
            f"few_shot={few_shot}: name train_files, or questions would be shown their own answers"
        )
    # Indexing all of the harness's tasks takes seconds, which a configuration of our own does not need.
    tasks = TaskManager(include_defaults=isinstance(task, str))
    found: Any = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=tasks,
        limit=limit,
        num_fewshot=few_shot or None,
        bootstrap_iters=0,
    )
    [samples] = found["samples"].values()
    return {str(sample["doc_id"]): bool(sample["acc"]) for sample in samples}


def main(arguments: Sequence[str] | None = None) -> None:
    """The harness's command line, with the model `sinklora` and local files for OpenBookQA."""
    from lm_eval.__main__ import cli_evaluate

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_files")
    parser.add_argument("--train_files")
    parser.add_argument("-f", "--num_fewshot")
    parser.add_argument("-t", "--tasks", nargs="+", default=[])
    own, given = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    if own.num_fewshot is not None:
        given += ["--num_fewshot", own.num_fewshot]
        if own.data_files is not None and own.train_files is None and own.num_fewshot != "0":
            parser.error(f"--num_fewshot {own.num_fewshot}: name --train_files, the questions to show")
    tasks = [task for some in own.tasks for task in some.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        if own.train_files is not None and own.data_files is None:
            parser.error(
                f"--train_files {own.train_files}: shown before the questions of --data_files; name both"
            )
        if own.data_files is not None:
            if "openbookqa" not in tasks:
                parser.error(f"--data_files {own.data_files}: replaces openbookqa, not among --tasks {tasks}")
            file = Path(folder) / "openbookqa_local.yaml"
            file.write_text(
                yaml.safe_dump(openbookqa_task(own.data_files, own.train_files)), encoding="utf-8"
            )
            tasks = [str(file) if task == "openbookqa" else task for task in tasks]
        if tasks:
            given += ["--tasks", ",".join(tasks)]
        before, sys.argv = sys.argv, ["lm_eval", *given]
        try:
            cli_evaluate()
        finally:
            sys.argv = before


if __name__ == "__main__":
    main()
