"""What the reproduction's tables call models that no pattern trained, and methods in words."""

from pathlib import Path

from sinklora.pretrained.catalogue import packaged_model

UNTRAINED = "extended positions, untrained"

CACHES = {  # policies by name
    "full": "full cache",
    "h2o": "H2O",
    "local": "Local",
    "streaming": "StreamingLLM",
    "tova": "TOVA",
    "snapkv": "SnapKV",
    "snapkv_layer": "SnapKV within layers",
    "snapkv_model": "SnapKV over the model",
    "expected_attention": "Expected Attention",
    "expected_attention_layer": "Expected Attention within layers",
    "expected_attention_model": "Expected Attention over the model",
    "novelty": "Novelty",
    "h2o_decayed": "H2O, decayed by 0.97",
    "second_pass": "a second pass (KVzip-like)",
    "replay": "Replay (ours)",
    "replay_layer": "Replay within layers",
    "replay_head": "Replay, equal heads",
}

LABELS = {
    "full": "full attention",
    "sf": "SF-Attn",
    "s2": "S²-Attn without the leak",
    "s2_wrapped": "leaking S²-Attn",
    "short": "windows alone",
    "sf_shifted": "SF-Attn with the half shift kept",
    "sf_then_full": "SF-Attn, then full attention (ours)",
    "sf_growing": "growing windows, then full attention (ours)",
    "fixed": "fixed pattern",
    "stride": "stride pattern",
    "random": "random pattern",
    "shift_up": "shift up only",
    "shift_back": "shift back only",
    "base": "no training, its own context",
}

POSITIONS = {"yarn": "YaRN", "dynamic": "dynamic NTK"}  # ways to extend them, by name

BASE = "base"

EMBEDDED = "embedded base"

RANDOM = "random weights"  # of models whose time is measured, and nothing that depends on what they say


def label(method: str) -> str:
    """A method in words."""
    return LABELS.get(method, method)


def positions_title(kind: str) -> str:
    """A way to extend positions in words: "YaRN positions"."""
    return f"{POSITIONS.get(kind, kind)} positions"


def model_title(name: str) -> str:
    """What tables call a model: a packaged one by its title, the embedded base so, any other by its name."""
    packaged = packaged_model(name)
    if packaged is not None:
        return packaged.title
    return EMBEDDED if Path(name) == Path("data/base") else name


def untrained_name(method: str, factor: float) -> str:
    """How a base is called whose positions were extended without any training: "yarn ×4, untrained"."""
    return f"{method} ×{factor:g}, untrained"
