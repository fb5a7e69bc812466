"""What a notebook reads beside the code: a job is done again where that has become another."""

from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from sinklora.records.files import contents_hash, json_hash
from sinklora.records.provenance import PACKAGES
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.train.sources import PROSE_TEST_PACKAGES, TRAIN_PACKAGES

LOCAL = ("dir", "jsonl", "hub")  # kinds of sources that may be folders or files of this machine

NO_TEXTS = ("base", "real_base", "recipe")  # parameters that name models, and what is read by itself


def reads_hash(parameters: Mapping[str, Any]) -> str:
    """SHA-256 over the local texts that a notebook's parameters and its recipe name, by their contents.

    Paths are relative to the working directory, which is the sources'.
    """
    named = {name: value for name, value in parameters.items() if name not in NO_TEXTS}
    if path := parameters.get("recipe"):
        recipe = read_recipe(path)
        corpora = [*recipe.seen, *(texts.corpus for texts in recipe.texts.values())]
        named["texts"] = [corpus.source for corpus in corpora]
    return contents_hash(*sorted({path for text in _strings(named) for path in _places(text)}))


def versions_hash() -> str:
    """SHA-256 over the versions of what computes, and of the packages whose sources and prose are corpora."""
    distributions = packages_distributions()
    names = sorted({*PACKAGES, *TRAIN_PACKAGES, *PROSE_TEST_PACKAGES})
    return json_hash([[name, *map(version, sorted(set(distributions.get(name, ()))))] for name in names])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _places(text: str) -> Iterator[Path]:
    kind, colon, rest = text.partition(":")
    is_path = "/" in text and not colon
    place = Path(rest if kind in LOCAL and colon else text if is_path else "").expanduser()
    if place != Path() and place.exists():
        yield place
