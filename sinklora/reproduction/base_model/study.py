"""The recipe of the embedded base model: tokenizer, configuration, training, export, and what it can do."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sinklora.evaluate.pass_keys import pass_key_accuracy
from sinklora.evaluate.perplexity import measure_perplexity
from sinklora.hf.device import default_device
from sinklora.hf.model_shapes import SHAPES
from sinklora.records.checks import Count, NotNegative, Positive, Share, check_choice, check_fields, one_of
from sinklora.records.files import json_hash, write_json
from sinklora.train.run import train
from sinklora.train.sources import CorpusSpec, content_hash, read_documents
from sinklora.train.spec import TrainSpec

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocabulary` tokens; every digit is a token of its own, so that a number is
    copied digit by digit.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def base_config(tokenizer: PreTrainedTokenizerFast, context: int, shape: str = "base") -> LlamaConfig:
    """A shape of `model_shapes` with the tokenizer's vocabulary; "base" has 4.5 million parameters."""
    check_choice("shape", shape, SHAPES)
    return LlamaConfig(
        **{**SHAPES[shape], "vocab_size": len(tokenizer)},
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_skeleton(folder: Path, tokenizer: PreTrainedTokenizerFast, config: LlamaConfig) -> None:
    """Tokenizer and configuration without weights: what a training run from random weights starts with."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)


def export(run: Path, skeleton: Path, destination: Path) -> None:
    """The run's model in bfloat16 with its tokenizer, as `from_pretrained` expects it, its loss curve
    and its record.
    """
    AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.bfloat16).save_pretrained(destination)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(skeleton / name, destination / name)
    shutil.copyfile(run / "loss.csv", destination / "loss.csv")
    record = {name: json.loads((run / f"{name}.json").read_text()) for name in ("spec", "provenance")}
    write_json(destination / "record.json", record)


@dataclass(frozen=True)
class BaseRecipe:
    """How the embedded base model is made; the defaults made the one in `data/base`.

    `shape`: of `model_shapes`. Characters, tokens and steps are counts; `recall_share` is the share of
    training rows that are recall documents. Raises TypeError or ValueError naming the field.
    """

    shape: Annotated[str, one_of(SHAPES)] = "base"
    vocabulary: Count = 4096
    tokenizer_characters: Count = 20_000_000
    training_characters: Count = 95_000_000
    context: Count = 512
    steps: Count = 3400
    batch_size: Count = 16
    micro_batch_size: Count | None = None  # the whole batch
    learning_rate: Positive = 3e-3
    warmup_steps: NotNegative = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    recall_share: Share = 0.05
    compile: bool = True
    seed: NotNegative = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def spec(self, skeleton: Path) -> TrainSpec:
        """The training run of the recipe."""
        return TrainSpec(
            base=str(skeleton),
            corpus=CorpusSpec(total_characters=self.training_characters),
            context=self.context,
            pattern="full",
            method="full",
            random_weights=True,
            steps=self.steps,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size or self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            lr_schedule="cosine",
            weight_decay=self.weight_decay,
            compile=self.compile,
            recall_share=self.recall_share,
            save_every=200,
            seed=self.seed,
        )


def make_base(recipe: BaseRecipe, *, runs: Path, cache: Path | None = None, progress: bool = True) -> Path:
    """Train tokenizer and model by the recipe (or go on, or reuse); returns the folder of the exported model.

    The folder holds the model in bfloat16, the tokenizer, `loss.csv` and `record.json` (spec, data,
    provenance).
    """
    documents, _ = read_documents(CorpusSpec(total_characters=recipe.tokenizer_characters))
    made_of = {name: getattr(recipe, name) for name in ("vocabulary", "context", "shape")}
    key = json_hash({**made_of, "texts": content_hash(documents)})[:16]
    skeleton = runs / f"base-skeleton-{key}"
    if not (skeleton / "config.json").is_file():  # written last
        tokenizer = train_tokenizer((document.text for document in documents), recipe.vocabulary)
        write_skeleton(skeleton, tokenizer, base_config(tokenizer, recipe.context, recipe.shape))
    run = train(recipe.spec(skeleton), runs=runs, cache=cache, progress=progress)
    destination = runs / f"base-model-{run.path.name.rpartition('-')[2]}"
    if not destination.is_dir():
        temporary = destination.with_name(f".{destination.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        export(run.path, skeleton, temporary)
        temporary.rename(destination)
    return destination


def measure_base(
    base: Path,
    *,
    context: int,
    documents: int,
    document_tokens: int,
    trials: int,
    seed: int,
    progress: bool = True,
) -> pd.DataFrame:
    """What the base model can do: perplexity on unseen files and on unseen packages, pass-key recall by
    length.

    Each test set is the first `documents` documents of its split, in the order of the hash of their names,
    cut to `document_tokens` tokens: a draw over all packages that does not change, and no more than that is
    tokenized. Columns: measure, value, low, high (95 % Wilson interval of recall), n (tokens predicted, or
    trials); `attrs["data"]` records the test sets. Raises ValueError if a split has fewer documents.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows, data = [], {}
    for split, name in (("validation", "unseen files of the training packages"), ("test", "unseen packages")):
        texts, data[split] = _first_documents(tokenizer, split, documents, document_tokens)
        result = measure_perplexity(
            model,
            texts,
            context=context,
            stride=context // 2,
            batch_size=8,
            device=default_device(),
            progress=progress,
        )
        rows.append(
            {"measure": f"perplexity at {context}, {name}", "value": result.perplexity, "n": result.tokens}
        )
    for tokens in (context // 4, context // 2, context):
        accuracy = pass_key_accuracy(
            model, tokenizer, tokens=tokens, trials=trials, seed=seed, progress=progress
        )
        low, high = accuracy.interval()
        measure = f"pass-key recall at {tokens} tokens"
        rows.append({"measure": measure, "value": accuracy.share, "low": low, "high": high, "n": trials})
    measured = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "n"])
    measured.attrs["data"] = data
    return measured


def _first_documents(
    tokenizer: PreTrainedTokenizerBase, split: str, documents: int, document_tokens: int
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Token ids (BOS first) of the first documents of a split of the default corpus, and what they are."""
    longest = CorpusSpec().max_characters
    # So much text holds that many documents, however long they are.
    spec = CorpusSpec(split=split, total_characters=documents * longest)
    chosen = read_documents(spec)[0][:documents]
    if len(chosen) < documents:
        raise ValueError(f"documents={documents}: the {split} split has only {len(chosen)}")
    ids = tokenizer([d.text for d in chosen], add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [np.asarray([tokenizer.bos_token_id, *row])[:document_tokens] for row in ids]
    record = {"source": spec.source, "split": split, "documents": documents, "sha256": content_hash(chosen)}
    return tokens, {**record, "document_tokens": document_tokens}
