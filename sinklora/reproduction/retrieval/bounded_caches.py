"""A pretrained model as it is, asked through each cache that the paper compares; and whether what it says
with the full cache is more than chance, without which no cache can be judged.
"""

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.hf.device import default_device
from sinklora.pretrained.loading import fast_dtype
from sinklora.reproduction.model_under_test import ModelUnderTest, unextended_base
from sinklora.reproduction.names import CACHES, model_title

FULL = "full"

REPLAY = CACHES["replay"]

LEADS = (("H2O", "StreamingLLM"), ("H2O", "Local"), (REPLAY, "H2O"))  # of the first of two is claimed

CANNOT = "cannot be measured with this model"


def compared_caches(budget: float) -> dict[str, CachePolicy | None]:
    """The caches by the names of tables, bounded ones at this share of the prompt; None: the model's own."""
    return {
        FULL: None,
        "H2O": H2O(budget),
        "StreamingLLM": StreamingLLM(budget),
        "Local": SlidingWindow(budget),
        REPLAY: Replay(budget),
    }


def claimed_leads(caches: Container[str]) -> list[tuple[str, str]]:
    """Those of `LEADS` of which both were measured."""
    return [(better, worse) for better, worse in LEADS if better in caches and worse in caches]


def pretrained_model(base: str) -> ModelUnderTest:
    """A pretrained model as it is, in the type of weights that this processor is fast with."""
    dtype = str(fast_dtype(str(default_device()))).removeprefix("torch.")
    return replace(unextended_base(base), name=model_title(base), dtype=dtype)


def folder_that_is_there(folder: str) -> Path | None:
    """A folder of local data; None for an empty name and for one that is not there."""
    return Path(folder) if folder and Path(folder).is_dir() else None
