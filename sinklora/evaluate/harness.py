"""lm-evaluation-harness under a cache budget: all its tasks, scoring and generating through the cache.

    python -m sinklora.evaluate.harness --model sinklora \\
        --model_args pretrained=data/base,kv=h2o,budget=0.2 --tasks openbookqa --data_files questions.jsonl

The arguments are those of `lm_eval`; ``--data_files`` reads OpenBookQA from a local file in the hub's format.
"""

import argparse
import copy
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm

from sinklora.cache_policies import Full, make_policy
from sinklora.kv_cache import BudgetCache, feed_scores

try:
    import lm_eval
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError("lm-evaluation-harness is not installed: pip install 'sinklora[eval]'") from error

CHANCE = 0.25  # OpenBookQA has four choices
Request = tuple[tuple[str, str] | None, list[int], list[int]]


def parse_budget(budget: str | int | float | None) -> int | float | None:
    """A budget from the command line: "0.2" is a fraction, "64" tokens. Raises ValueError for others."""
    if budget is None or isinstance(budget, int | float):
        return budget
    try:
        return float(budget) if "." in budget else int(budget)
    except ValueError:
        raise ValueError(
            f"budget={budget!r}: expected a fraction such as 0.2, or tokens such as 64"
        ) from None


@register_model("sinklora")
class BudgetLM(HFLM):
    """A causal language model that answers through a BudgetCache.

    `kv`: full, h2o, local, streaming or novelty; `budget`: a fraction of the context, or tokens (none for
    full); `prefill_chunk`: as in BudgetCache. Other arguments are those of the harness's own `hf` model. The
    context is read and evicted, then the continuation is scored token by token; contexts that several
    continuations share are read once. Raises ValueError before a model is loaded.
    """

    def __init__(
        self,
        pretrained: Any,
        kv: str = "full",
        budget: str | int | float | None = None,
        prefill_chunk: str | int | None = None,
        **arguments: Any,
    ) -> None:
        self.policy = make_policy(kv, parse_budget(budget))
        self.prefill_chunk = None if prefill_chunk is None else int(prefill_chunk)
        super().__init__(pretrained=pretrained, backend="causal", **arguments)
        feed_scores(self.model.eval())

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
            for count, index in enumerate(indices, 1):
                own = cache if count == len(indices) else copy.deepcopy(cache)
                found[index] = self._score(own, logits, requests[index][2])
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return [found[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _read(self, ids: list[int]) -> tuple[BudgetCache, torch.Tensor]:
        cache = self.new_cache()
        inputs = torch.tensor([ids], device=self.device)
        output = self.model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache, output.logits[0, -1]

    @torch.inference_mode()
    def _score(self, cache: BudgetCache, logits: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
        total, greedy = 0.0, True
        for place, token in enumerate(continuation):
            likely = logits.float().log_softmax(-1)
            total += float(likely[token])
            greedy &= int(likely.argmax()) == token
            if place + 1 < len(continuation):
                step = torch.tensor([[token]], device=self.device)
                logits = self.model(step, past_key_values=cache, use_cache=True).logits[0, -1]
        return total, greedy

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, token by token. A fraction has no prompt here: raises ValueError."""
        if not isinstance(self.policy, Full) and isinstance(self.policy.budget, float):
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
    Raises FileNotFoundError for a file that is not there.
    """
    files = {"test": data_files, **({} if train_files is None else {"train": train_files})}
    for file in files.values():
        if not Path(file).is_file():
            raise FileNotFoundError(f"data_files={str(file)!r}: no such file")
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


def accuracy_rows(
    pretrained: Any,
    task: dict[str, Any] | str,
    settings: Sequence[tuple[str, float | int | None]],
    *,
    chance: float = CHANCE,
    limit: int | None = None,
    few_shot: int = 0,
    **arguments: Any,
) -> pd.DataFrame:
    """Accuracy of a multiple-choice task for each (kv, budget), with what a row must say of itself.

    Columns: ``kv``, ``budget``, ``eviction`` (always real), ``split`` (heavy to recent), ``n``,
    ``accuracy``, ``stderr``, ``chance``. `arguments` go to `BudgetLM`.
    """
    rows = []
    for kv, budget in settings:
        model = BudgetLM(pretrained, kv=kv, budget=budget, **arguments)
        found: Any = lm_eval.simple_evaluate(
            model=model, tasks=[task], limit=limit, num_fewshot=few_shot, bootstrap_iters=0
        )
        [(name, values)] = found["results"].items()
        n = found["n-samples"][name]["effective"]
        accuracy = values["acc,none"]
        row = {"kv": kv, "budget": budget, "eviction": "real", "split": model.policy.described_split()}
        row |= {"n": n, "accuracy": accuracy, "stderr": math.sqrt(accuracy * (1 - accuracy) / max(1, n - 1))}
        rows.append({**row, "chance": chance})
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The harness's command line, with the model `sinklora` and local files for OpenBookQA."""
    from lm_eval.__main__ import cli_evaluate

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_files")
    parser.add_argument("-t", "--tasks", nargs="+", default=[])
    own, given = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    tasks = [task for some in own.tasks for task in some.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        if own.data_files is not None:
            if "openbookqa" not in tasks:
                parser.error(f"--data_files {own.data_files}: replaces openbookqa, not among --tasks {tasks}")
            file = Path(folder) / "openbookqa_local.yaml"
            file.write_text(yaml.safe_dump(openbookqa_task(own.data_files)), encoding="utf-8")
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
