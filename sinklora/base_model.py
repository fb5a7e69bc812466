"""The recipe of the embedded base model: tokenizer, configuration, export."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from sinklora.data import (
    TEST_PACKAGES,
    TRAIN_PACKAGES,
    CorpusSpec,
    content_hash,
    read_documents,
    tokenize_corpus,
)
from sinklora.evaluate.perplexity import perplexity
from sinklora.evaluate.retrieval import pass_key_accuracy
from sinklora.files import atomic_write, json_hash, write_json
from sinklora.report import markdown
from sinklora.train import TrainSpec, train

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHARACTERS_A_DOCUMENT = 40_000  # of the test sets: twice the mean, so that enough documents are read
LARGEST_BYTES = 12_000_000  # of the published weights
CARD = """# The embedded base model

A small language model of Python source text, made by `notebooks/00_base_model.ipynb` so that every
experiment here runs anywhere. It is no assistant and writes no useful code: it is there to be extended,
measured, compared.

- **Architecture:** Llama, 4 layers, hidden size 256, 4 heads of 64, tied embeddings, context {context}
  tokens; weights in bfloat16.
- **Tokenizer:** byte-level BPE; every digit is a token of its own.
- **Data:** {documents} Python files of installed packages ({train_packages}), {corpus_tokens} tokens,
  SHA-256 of the texts `{sha256}`. Held out: 4 % of the files of these packages, and all of {test_packages}.
  {recall_share} of the rows are synthetic documents that plant pass keys or values and ask for them.
- **Training:** {training}, {optimizer}, weight decay {weight_decay}, bfloat16 autocast, seed {seed}.
- **Record:** `record.json` (specification, data, provenance), `loss.csv` (training loss).

## What it can do

{measured}

Perplexity with full attention; `n` is tokens predicted, or trials; intervals are 95 % Wilson intervals.

The packages it was trained on are open source under their own licences (BSD, MIT, Apache-2.0 and similar).
"""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``vocabulary`` tokens; every digit is a token of its own, so that a number is
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


def base_config(tokenizer: PreTrainedTokenizerFast, context: int) -> LlamaConfig:
    """Llama architecture, 4.5 million parameters: 4 layers, 4 heads of 64, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=True,
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
    """The run's model in bfloat16 with its tokenizer, as ``from_pretrained`` expects it, its loss curve
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
    """How the embedded base model is made; the defaults made the one in ``data/base``.

    Characters, tokens and steps are counts; ``recall_share`` is the share of training rows that are recall
    documents.
    """

    vocabulary: int = 4096
    tokenizer_characters: int = 20_000_000
    training_characters: int = 95_000_000
    context: int = 512
    steps: int = 3400
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    recall_share: float = 0.05
    compile: bool = True
    seed: int = 0

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
            micro_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            schedule="cosine",
            weight_decay=self.weight_decay,
            compile=self.compile,
            recall_share=self.recall_share,
            save_every=200,
            seed=self.seed,
        )


def make_base(recipe: BaseRecipe, *, runs: Path, cache: Path | None = None, progress: bool = True) -> Path:
    """Train tokenizer and model by the recipe (or go on, or reuse); returns the folder of the exported model.

    The folder holds the model in bfloat16, the tokenizer, ``loss.csv`` and ``record.json`` (spec, data,
    provenance).
    """
    documents, _ = read_documents(CorpusSpec(total_characters=recipe.tokenizer_characters))
    key = json_hash(
        {"vocabulary": recipe.vocabulary, "texts": content_hash(documents), "context": recipe.context}
    )[:16]
    skeleton = runs / f"base-skeleton-{key}"
    if not (skeleton / "config.json").is_file():  # written last
        tokenizer = train_tokenizer((document.text for document in documents), recipe.vocabulary)
        write_skeleton(skeleton, tokenizer, base_config(tokenizer, recipe.context))
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
    cache: Path | None = None,
) -> pd.DataFrame:
    """What the base model can do: perplexity on unseen files and on unseen packages, pass-key recall by
    length.

    Columns: measure, value, low, high (95 % Wilson interval of recall), n (tokens or trials).
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    for split, name in (("validation", "unseen files of the training packages"), ("test", "unseen packages")):
        chosen = CorpusSpec(split=split, total_characters=documents * CHARACTERS_A_DOCUMENT)
        corpus = tokenize_corpus(chosen, tokenizer, cache=cache)
        texts = [text[:document_tokens] for text in corpus.documents()[:documents]]
        result = perplexity(model, texts, context=context, stride=context // 2, batch_size=8)
        rows.append(
            {"measure": f"perplexity at {context}, {name}", "value": result.perplexity, "n": result.tokens}
        )
    for tokens in (context // 4, context // 2, context):
        accuracy = pass_key_accuracy(model, tokenizer, tokens=tokens, trials=trials, seed=seed)
        low, high = accuracy.interval()
        measure = f"pass-key recall at {tokens} tokens"
        rows.append({"measure": measure, "value": accuracy.share, "low": low, "high": high, "n": trials})
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "n"])


def model_card(record: dict[str, Any], measured: pd.DataFrame) -> str:
    """The card of an exported base model, in Markdown: what it is, how it was made, what it can do."""
    spec, data = record["spec"], record["provenance"]["data"]
    tokens = spec["steps"] * spec["batch_size"] * spec["context"]
    return CARD.format(
        context=spec["context"],
        documents=f"{data['documents']:,}",
        corpus_tokens=f"{data['tokens']:,}",
        sha256=data["sha256"],
        train_packages=", ".join(TRAIN_PACKAGES),
        test_packages=", ".join(TEST_PACKAGES),
        recall_share=f"{spec['recall_share']:.0%}",
        training=f"{spec['steps']:,} steps of {spec['batch_size']} rows ({tokens:,} tokens)",
        optimizer=f"AdamW, peak learning rate {spec['learning_rate']}, {spec['schedule']} schedule",
        weight_decay=spec["weight_decay"],
        seed=spec["seed"],
        measured=markdown(measured),
    )


def publish(model: Path, measured: pd.DataFrame, destination: Path) -> None:
    """Put an exported base model with its card in the place of ``destination``.

    Raises ValueError if its weights are larger than 12 MB, which the repository should not hold.
    """
    size = (model / "model.safetensors").stat().st_size
    if size > LARGEST_BYTES:
        raise ValueError(
            f"model={str(model)!r}: its weights take {size:,} bytes, more than {LARGEST_BYTES:,}"
        )
    temporary = destination.with_name(f".{destination.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(model, temporary)
    record = json.loads((model / "record.json").read_text())
    atomic_write(temporary / "README.md", model_card(record, measured))
    if destination.exists():
        destination.rename(destination.with_name(f".{destination.name}.old"))
    temporary.rename(destination)
    shutil.rmtree(destination.with_name(f".{destination.name}.old"), ignore_errors=True)
