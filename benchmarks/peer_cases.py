"""What is asked of sinklora and of each peer, and what the answer is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["caches", "operators", "steps"]


@dataclass(frozen=True)
class Case:
    """One row.

    `asked`, with `side`, a module of `peer_sides`: what its process is told. `beside`: the case of ours that
    it is compared with. `reference`: a dense mask of `peer_references`. `keeps`: a definition of
    `peer_references.KEEPS`, where some tokens stay.
    """

    kind: Kind
    peer: str
    what: str
    environment: str
    side: str
    asked: dict[str, Any]
    beside: str
    reference: str
    keeps: str | None = None
    packages: tuple[str, ...] = field(default=("transformers",))

    @property
    def process(self) -> str:
        """Cases of one such name share a process; LongLoRA's replaces parts of transformers for good."""
        return self.name if self.side == "longlora_operator" else self.environment

    @property
    def name(self) -> str:
        """Its name among cases, of ASCII letters, digits and lines, as a file may be named."""
        text = f"{self.peer}-{self.what}-{self.environment}".lower()
        return "".join(x if x.isascii() and x.isalnum() else "-" for x in text)

    def request(self) -> dict[str, Any]:
        """What its process is told."""
        return {"side": self.side, "packages": list(self.packages), **self.asked}


OURS = "sinklora"


def ours(kind: Kind, what: str, side: str, asked: dict[str, Any], reference: str, keeps: Any = None) -> Case:
    """A case of ours, which is compared with itself."""
    return Case(kind, OURS, what, "today", side, asked, what, reference, keeps, ("sinklora", "transformers"))


def our_cache(what: str, keeps: str | None) -> Case:
    """A BudgetCache by the policy of a name."""
    return ours("caches", what, "caches_here", {"cache": what}, "held" if keeps else "full", keeps)


def own_cache(what: str, beside: str, reference: str = "full", **more: Any) -> Case:
    """A cache of transformers."""
    environment = more.pop("environment", "today")
    packages = ("transformers", *more.pop("packages", ()))
    asked = {"cache": what.split(",")[0], **more}
    return Case(
        "caches", "transformers", what, environment, "caches_here", asked, beside, reference, None, packages
    )


def press(what: str, beside: str, keeps: str, environment: str = "kvpress", **more: Any) -> Case:
    """A press of kvpress."""
    asked = {"press": what.split(",")[0], **more}
    packages = ("kvpress", "transformers")
    return Case(
        "caches", "kvpress", what, environment, "kvpress_presses", asked, beside, "held", keeps, packages
    )


def released(flash: bool, environment: str, stand_in: bool = True) -> Case:
    """LongLoRA's operator."""
    what = f"S², {'with' if flash else 'without'} FlashAttention" if stand_in else "import"
    beside, reference = ("S²", "s2") if flash else ("S², wrapped", "s2_wrapped")
    asked = {"flash": flash, "stand_in": stand_in}
    return Case(
        "operators", "LongLoRA", what, environment, "longlora_operator", asked, beside, reference, None
    )


def our_operator(what: str, pattern: str) -> Case:
    """A pattern in training."""
    return ours("operators", what, "our_operator", {"pattern": pattern}, pattern)


def our_step(what: str, pattern: str) -> Case:
    """A training step with LoRA+."""
    return ours("steps", what, "our_steps", {"pattern": pattern}, pattern)


CASES = (
    our_cache("Full", None),
    our_cache("H2O", "h2o"),
    our_cache("SnapKV", "snapkv"),
    our_cache("StreamingLLM", "streaming"),
    our_cache("Local", "local"),
    own_cache("DynamicCache", "Full"),
    own_cache("StaticCache", "Full"),
    own_cache("sliding window", "Local", "window"),
    own_cache("SinkCache", "StreamingLLM"),
    own_cache("QuantizedCache, fp8", "H2O", backend="fp8"),
    own_cache(
        "QuantizedCache, quanto 4 bits",
        "H2O",
        backend="quanto",
        environment="quanto",
        packages=("optimum-quanto",),
    ),
    own_cache(
        "QuantizedCache, HQQ 4 bits",
        "H2O",
        backend="hqq",
        options={"axis_key": 1, "axis_value": 1},
        environment="hqq",
        packages=("hqq",),
    ),
    press("ObservedAttentionPress", "H2O", "averaged", attention="eager"),
    press("ObservedAttentionPress, for H2O", "H2O", "h2o", attention="eager"),
    press("SnapKVPress", "SnapKV", "snapkv"),
    press("StreamingLLMPress", "StreamingLLM", "streaming"),
    press("SnapKVPress", "SnapKV", "snapkv", "kvpress-today"),
    our_operator("S²", "s2"),
    our_operator("S², wrapped", "s2_wrapped"),
    released(False, "longlora"),
    released(True, "longlora"),
    released(False, "longlora-today", stand_in=False),
    released(False, "longlora-today"),
    our_step("full attention", "full"),
    our_step("SF-Attn", "sf"),
    Case(
        "steps",
        "TRL + peft",
        "SFTTrainer, full attention",
        "trl",
        "trl_steps",
        {},
        "full attention",
        "full",
        None,
        ("trl", "peft", "transformers"),
    ),
)
