"""A pretrained model as it is, asked through each cache that the paper compares; and whether what it says
with the full cache is more than chance, without which no cache can be judged.
"""

from dataclasses import replace
from pathlib import Path

from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.hf.device import default_device
from sinklora.pretrained.loading import fast_dtype
from sinklora.reproduction.model_under_test import ModelUnderTest, unextended_base
from sinklora.reproduction.names import model_title

FULL = "full"

CANNOT = "cannot be measured with this model"


def compared_caches(budget: float) -> dict[str, CachePolicy | None]:
    """The caches by the names of tables, bounded ones at this share of the prompt; None: the model's own."""
    return {
        FULL: None,
        "H2O": H2O(budget),
        "StreamingLLM": StreamingLLM(budget),
        "Local": SlidingWindow(budget),
    }


def pretrained_model(base: str) -> ModelUnderTest:
    """A pretrained model as it is, in the type of weights that this processor is fast with."""
    dtype = str(fast_dtype(str(default_device()))).removeprefix("torch.")
    return replace(unextended_base(base), name=model_title(base), dtype=dtype)


def folder_that_is_there(folder: str) -> Path | None:
    """A folder of local data; None for an empty name and for one that is not there."""
    return Path(folder) if folder and Path(folder).is_dir() else None
