"""The card of an exported base model, and its publication in the repository."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from sinklora.records.files import atomic_write
from sinklora.records.tables import markdown
from sinklora.train.sources import HELD_OUT_PERCENT, TEST_PACKAGES, TRAIN_PACKAGES

LARGEST_BYTES = 12_000_000  # of the published weights

LAST_STEPS = 50  # the training loss is their mean

CARD = """# The embedded base model

A small language model of Python source text, made by `notebooks/00_base_model.ipynb` so that every experiment
here runs anywhere, offline.

| | |
|---|---|
| architecture | {architecture} |
| parameters | {parameters} |
| weights | {weights} |
| tokenizer | byte-level BPE, {vocabulary} tokens; every digit is a token; a document begins with `<s>` |
| training text | {documents} Python files of installed packages ({train_packages}), {corpus_tokens} tokens |
| held out | {held_out} % of these packages' files, by the hash of their names; all of {test_packages} |
| SHA-256 of the training text | `{sha256}` |
| retrieval documents | {recall_share} of the rows: pass keys or values in filler, asked for in varied words |
| training | {training} |
| optimizer | {optimizer} |
| training loss | {loss} |
| made on | {made_on} |

`record.json` holds specification, data and provenance, `loss.csv` the loss of every step.

## What it can do

{measured}

Perplexity with full attention; `n` is tokens predicted, or trials; `low` and `high` bound 95 % Wilson
intervals. The held-out files belong to packages it has seen, whose files resemble each other; the unseen
packages are the harder and fairer test.

## What it is for, and what not

It is there to be extended, measured and compared: contexts, attention patterns, caches. It is no assistant:
it follows no instruction, knows nothing but Python source text and the retrieval sentences, and writes no
useful code. What is found on a model of this size need not carry over to large ones. It may repeat short
passages of its training text.

## Licence

The weights come under the licence of this repository (Apache-2.0). The training text is not in the
repository: it is read from installed open-source packages, each under its own licence (BSD, Apache-2.0 and
similar).
"""


def described(folder: Path) -> dict[str, Any]:
    """The record of an exported model (specification, provenance) with what its other files say: the
    configuration, the number of parameters, the bytes of the weights, the training loss.
    """
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (no dict)
    return {
        **record,
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "parameters": sum(math.prod(shape) for shape in shapes),
        "bytes": (folder / "model.safetensors").stat().st_size,
        "loss": float(pd.read_csv(folder / "loss.csv").loss.tail(LAST_STEPS).mean()),
    }


def card_text(record: dict[str, Any], table: pd.DataFrame) -> str:
    """The card in Markdown: what the model is, how it was made, what it can do, what it is not for.

    `record` is what `described` gives, `table` what `measure_base` measured.
    """
    spec, made, config = record["spec"], record["provenance"], record["config"]
    data = made["data"]
    tokens = spec["steps"] * spec["batch_size"] * spec["context"]
    return CARD.format(
        architecture=_architecture(config),
        parameters=f"{record['parameters']:,}",
        weights=f"{record['bytes'] / 1e6:.1f} MB, safetensors, {config['dtype']}",
        vocabulary=f"{config['vocab_size']:,}",
        documents=f"{data['documents']:,}",
        train_packages=", ".join(TRAIN_PACKAGES),
        corpus_tokens=f"{data['tokens']:,}",
        held_out=HELD_OUT_PERCENT,
        test_packages=", ".join(TEST_PACKAGES),
        sha256=data["sha256"],
        recall_share=f"{100 * spec['recall_share']:g} %",
        training=f"{spec['steps']:,} steps of {spec['batch_size']} rows of {spec['context']} tokens: "
        f"{tokens:,} tokens seen, seed {spec['seed']}",
        optimizer=f"AdamW, peak learning rate {spec['learning_rate']}, {spec['schedule']} schedule after "
        f"{spec['warmup_steps']} steps of warm-up, weight decay {spec['weight_decay']}"
        + (", bfloat16 autocast" if spec["bf16"] else ""),
        loss=f"{record['loss']:.3f} nats a token (mean of the last {LAST_STEPS} steps)",
        made_on=_made_on(made),
        measured=markdown(table),
    )


def _architecture(config: dict[str, Any]) -> str:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    tied = ", tied embeddings" if config["tie_word_embeddings"] else ""
    return (
        f"{config['architectures'][0]}: {config['num_hidden_layers']} layers, hidden size {hidden}, "
        f"{heads} heads of {hidden // heads}, context {config['max_position_embeddings']} tokens{tied}"
    )


def _made_on(made: dict[str, Any]) -> str:
    hardware = made["hardware"]
    device = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {made['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    commit = (made["commit"] or "no commit")[:10]
    took = "" if made["seconds"] is None else f", {made['seconds'] / 60:.0f} minutes"
    return f"{device}{took}; {versions}; commit {commit}"


def publish(model_folder: Path, table: pd.DataFrame, destination: Path) -> None:
    """Put an exported model with its card in the place of `destination`, whole or not at all.

    Raises ValueError if its weights are larger than 12 MB, which the repository should not hold, or if it is
    already there.
    """
    size = (model_folder / "model.safetensors").stat().st_size
    if size > LARGEST_BYTES:
        raise ValueError(
            f"model_folder={str(model_folder)!r}: its weights take {size:,} bytes, "
            f"more than {LARGEST_BYTES:,}"
        )
    if model_folder.resolve() == destination.resolve():
        raise ValueError(f"destination={str(destination)!r}: is the model's own folder; retrain it first")
    temporary, old = (destination.with_name(f".{destination.name}{end}") for end in ("", ".old"))
    for stale in (temporary, old):
        shutil.rmtree(stale, ignore_errors=True)
    shutil.copytree(model_folder, temporary)
    atomic_write(temporary / "README.md", card_text(described(temporary), table))
    if destination.exists():
        destination.rename(old)
    try:
        temporary.rename(destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
