"""Fig. 5 on a pretrained model as it is: pass keys in prose, through each cache, right or not and in nats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.pass_keys import ANSWER_TOKENS, is_right
from sinklora.evaluate.prose_pass_keys import keys_in_prose
from sinklora.evaluate.read_prompt import ReadPrompt, end_tokens
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.records.files import json_hash
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.train.retrieval_documents import NeedleDocument
from sinklora.train.sources import CorpusSpec, read_documents


@dataclass(frozen=True)
class KeysInProseStudy:
    """What a model is asked: `trials` (2 or more) pass keys of each length (tokens) in passages of a corpus.

    Raises TypeError or ValueError naming the field.
    """

    base: str
    corpus: CorpusSpec
    lengths: Distinct[Count]
    trials: Count
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def documents(self, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[NeedleDocument]]:
        """The documents that are asked about, by length."""
        texts = read_documents(self.corpus)[0]

        def count(text: str) -> int:
            return len(tokenizer(text)["input_ids"])

        make = partial(keys_in_prose, texts, count, trials=self.trials, seed=self.seed)
        return {tokens: make(tokens=tokens) for tokens in self.lengths}


def measure_keys_in_prose(
    study: KeysInProseStudy,
    subject: ModelUnderTest,
    caches: Mapping[str, CachePolicy | None],
    *,
    runs: Path = Path("runs"),
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a model for every key through every cache, one row a trial and cache: `tokens`, `trial`, `depth`
    (0 to 1), `cache`, `answer`, `wrote`, `correct`, and `nats`, the cross-entropy of the key's digits.

    The question is read with the rest of the prompt. Each length and cache is a run directory of its own.
    `rows.attrs` record the `data`, a hash of the documents of each length, and the `runs`.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(study.base))
    ready = cache(subject.ready)
    used: list[Path] = []
    frames, hashes = [], {}
    for tokens, documents in study.documents(tokenizer).items():
        hashes[f"{tokens} tokens"] = asked = json_hash([asdict(document) for document in documents])
        for name, policy in caches.items():
            key = {"model": subject.identity, "policy": policy_key(policy), "documents": asked}
            work = partial(_ask, ready, tokenizer, documents, policy, f"{tokens} tokens, {name}", progress)
            rows = pd.DataFrame(remember(key, work, runs=runs, prefix="keys-in-prose", used=used))
            depths = [trial / (study.trials - 1) for trial in rows.trial]
            frames.append(rows.assign(tokens=tokens, cache=name, depth=depths))
    frame = pd.concat(frames, ignore_index=True)
    data = {"corpus": asdict(study.corpus), "documents_sha256": hashes}
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def _ask(
    ready: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[NeedleDocument],
    policy: CachePolicy | None,
    shown: str,
    progress: bool,
) -> list[dict[str, Any]]:
    model = ready()
    make: Callable[[], Cache] = DynamicCache if policy is None else partial(BudgetCache, model, policy)
    rows = []
    for trial, document in enumerate(tqdm(documents, desc=shown, disable=not progress)):
        read = ReadPrompt(model, tokenizer(document.prompt)["input_ids"], make())
        wrote = str(tokenizer.decode(read.greedy(ANSWER_TOKENS, end_tokens(model))))
        ids = tokenizer(f" {document.answer}", add_special_tokens=False)["input_ids"]
        losses = read.nats([ids])[0]
        digits = [any(c.isdigit() for c in str(tokenizer.decode([token]))) for token in ids]
        nats = sum(loss for loss, is_digit in zip(losses, digits, strict=True) if is_digit)
        right = is_right(wrote, document)
        rows.append(
            {"trial": trial, "answer": document.answer, "wrote": wrote, "correct": right, "nats": nats}
        )
    return rows
