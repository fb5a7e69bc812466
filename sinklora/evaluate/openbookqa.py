"""OpenBookQA, Fig. 6's own measure, from local files, answered by lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.records.jsonl import json_lines
from sinklora.records.placed_fields import field_of

try:
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError("lm-evaluation-harness is not installed: pip install 'sinklora[eval]'") from error

FEW_SHOT_SEED = 1234  # the harness's own: which questions are shown before each


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
        field_of(fields, "question_stem", str, place)
        if not isinstance(texts, list) or not isinstance(labels, list) or not 1 < len(texts) == len(labels):
            raise ValueError(
                f"{place}: 'choices' is {choices!r:.80}, expected as many 'text' as 'label', two or more"
            )
        if fields.get("answerKey") not in labels:
            raise ValueError(
                f"{place}: 'answerKey' is {fields.get('answerKey')!r:.80}, expected one of {labels}"
            )


def answers(
    model: LMEvalModel,
    task: dict[str, Any] | str,
    *,
    limit: int | None = None,
    few_shot: int = 0,
    metric: str = "acc",
) -> dict[str, bool]:
    """Whether each question of a multiple-choice task is answered right, by the question's place in it.

    `task`: a name that the harness knows, or a configuration such as `openbookqa_task` makes; `limit`: only
    the first questions; `few_shot`: questions shown with their answers before each, 0: as the task says;
    `metric`: "acc", or "acc_norm", by the likelihood of a choice over its length in bytes.
    Raises ValueError for `few_shot` of local questions without others to show.
    """
    if few_shot and isinstance(task, dict) and "fewshot_split" not in task:
        raise ValueError(
            f"few_shot={few_shot}: name train_files, or questions would be shown their own answers"
        )
    # Indexing all of the harness's tasks takes seconds, which a configuration of our own does not need.
    tasks = TaskManager(include_defaults=isinstance(task, str))
    loaded: Any = tasks.load([task])
    for one in loaded["tasks"].values():
        if few_shot or one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=few_shot)
        one.set_fewshot_seed(seed=FEW_SHOT_SEED)
    # Not simple_evaluate, which asks a dozen programs what this machine is like, each time.
    results: Any = evaluate(model, loaded, limit=limit, bootstrap_iters=0)
    [samples] = results["samples"].values()
    return {str(sample["doc_id"]): bool(sample[metric]) for sample in samples}
