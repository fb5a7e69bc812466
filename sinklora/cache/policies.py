"""What every cache policy says, and the registry of policies; each policy has a file of its own beside this.

To add one, write its file: a frozen dataclass derived from `CachePolicy` with a `name`, its `split`, and,
where it has heavy hitters, `make_scorer`. Caches, figures, benchmarks and the harness find it by its name.

A policy splits its budget: the first `protected` tokens and the `recent` newest ones always stay, and of the
others the `heavy` ones with the highest score, the heavy hitters. Everything else is evicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from sinklora.cache.scores import Scorer
from sinklora.ranges import check_tokens, plain_fields

UNBOUNDED = 2**62

POLICIES: dict[str, type[CachePolicy]] = {}  # every policy by its name; classes add themselves


class Split(NamedTuple):
    """A budget in tokens: protected + heavy + recent."""

    protected: int
    heavy: int
    recent: int

    @property
    def total(self) -> int:
        return self.protected + self.heavy + self.recent


class Sharing(NamedTuple):
    """Whose heavy hitters compete for slots: those of a "head" (none), of a "layer" or of the whole "model".

    `own_share`: the part of a budget's heavy hitters that every head has for itself.
    """

    among: str = "head"
    own_share: float = 1.0


@dataclass(frozen=True)
class CachePolicy:
    """What every policy says: how a budget is split for a prompt, and what scores its heavy hitters.

    `budget` is a fraction of the prompt (float, above 0 and up to 1) or tokens (int, at least 1). A subclass
    that gives itself a `name` is found under it in POLICIES: by the harness, the benchmarks and the figures.
    Raises ValueError naming the argument.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""  # where it was published; "": it is ours
    bounded: ClassVar[bool] = True  # False: it evicts nothing and takes no budget
    moves_queries: ClassVar[bool] = False  # True: its scorer needs rotary position embeddings
    sizes: ClassVar[tuple[str, ...]] = ("budget", "sink_tokens")  # fields that a filled cache may change
    # Class and fields under which finished runs are stored, where they had another name then.
    stored_names: ClassVar[Mapping[str, str]] = MappingProxyType({})

    budget: float | int

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" in vars(cls):
            _register(cls)

    def __post_init__(self) -> None:
        plain_fields(self)
        check_tokens("budget", self.budget, "the prompt")

    @property
    def whole_budget(self) -> float | int:
        """All that stays, as a fraction of the prompt or in tokens."""
        return self.budget

    @property
    def is_fraction(self) -> bool:
        """Whether what stays is a fraction of the prompt."""
        return self.bounded and isinstance(self.whole_budget, float)

    def split(self, prompt_tokens: int) -> Split:
        """The budget in tokens for a prompt of so many tokens; at least one token."""
        raise NotImplementedError

    def with_budget(self, budget: float | int) -> CachePolicy:
        """The same with another budget. Raises ValueError for one that it cannot have."""
        if not self.bounded:
            raise ValueError(f"budget={budget!r}: the {self.name} cache has none")
        return replace(self, budget=budget)

    def with_fixed_budget(self, prompt_tokens: int) -> CachePolicy:
        """The same in tokens, where it is a fraction of a prompt of so many; its split stays.

        Sink tokens that give way to a small fraction do so here, too.
        """
        if not self.is_fraction:
            return self
        changed = {"budget": budget_in_tokens(self.budget, prompt_tokens)}
        if "sink_tokens" in {field.name for field in fields(self)}:
            changed["sink_tokens"] = self.split(prompt_tokens).protected
        return replace(self, **changed)

    def is_resized(self, other: CachePolicy) -> bool:
        """Whether another policy is this one, but for its sizes."""
        if type(other) is not type(self):
            return False
        others = [field.name for field in fields(self) if field.name not in self.sizes]
        return all(getattr(self, name) == getattr(other, name) for name in others)

    @property
    def sharing(self) -> Sharing:
        """Who shares the slots of a budget; where heads do, a budget is what a head has on average."""
        return Sharing()

    def make_scorer(self, empty: Tensor) -> Scorer | None:
        """What scores the tokens of one layer; None where the policy has no heavy hitters.

        `empty` [B, Hkv, 0] has the dtype and the device of scores.
        """
        return None

    @classmethod
    def has_scores(cls) -> bool:
        """Whether something scores its tokens, so that not always the oldest is evicted."""
        return cls.make_scorer is not CachePolicy.make_scorer

    def described_split(self, prompt_tokens: int) -> str:
        """What stays of a prompt of so many tokens, in words, such as "6 chosen, 32 newest of 384"."""
        parts = self.split(prompt_tokens)
        if parts.total >= UNBOUNDED:
            return f"all {prompt_tokens}"
        named = {"first": parts.protected, "chosen": parts.heavy, "newest": parts.recent}
        return ", ".join(f"{n} {what}" for what, n in named.items() if n) + f" of {prompt_tokens}"


def _register(policy: type[CachePolicy]) -> None:
    taken = POLICIES.get(policy.name)
    # A module that is loaded again defines its classes again.
    if taken and (taken.__module__, taken.__qualname__) != (policy.__module__, policy.__qualname__):
        raise ValueError(
            f"name={policy.name!r} of {policy.__qualname__}: {taken.__module__}.{taken.__qualname__} has it "
            "already; choose another name"
        )
    POLICIES[policy.name] = policy


def make_policy(name: str, budget: float | int | None = None, *, argument: str = "kv") -> CachePolicy:
    """The policy of a name in POLICIES with a budget; an unbounded one takes none.

    `argument`: what whoever names the policy calls that name, for the ValueError that a wrong one raises.
    """
    if name not in POLICIES:
        raise ValueError(f"{argument}={name!r}: expected one of {', '.join(POLICIES)}")
    policy: Any = POLICIES[name]
    if not policy.bounded:
        if budget is not None:
            raise ValueError(
                f"budget={budget!r}: the {name} cache has none; leave it out or choose another {argument}"
            )
        made: CachePolicy = policy()
        return made
    if budget is None:
        raise ValueError(
            f"{argument}={name!r} needs a budget: a fraction of the prompt such as 0.2, or tokens"
        )
    made = policy(budget)
    return made


def parse_budget(budget: str | int | float | None) -> int | float | None:
    """A budget from a command line: "0.2" and "20%" are fractions, "64" tokens, "" none.

    Numbers stay as they are. Raises ValueError for other text.
    """
    if budget is None or isinstance(budget, int | float):
        return budget
    text = budget.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdecimal() else float(text) if text else None
    except ValueError:
        raise ValueError(
            f"budget={budget!r}: expected a fraction such as 0.2 or 20%, or tokens such as 64"
        ) from None


def needed_budget(text: str) -> int | float:
    """A budget from a command line, where there has to be one. Raises ValueError for none and other text."""
    budget = parse_budget(text)
    if budget is None:
        raise ValueError("budget='': expected a fraction such as 0.2, or tokens such as 400")
    return budget


def policy_key(policy: CachePolicy | None) -> dict[str, Any] | None:
    """A cache policy as JSON, for what measurements are stored under; None: the model's own cache."""
    if policy is None:
        return None
    names, kind = policy.stored_names, type(policy).__name__
    values = {names.get(name, name): value for name, value in asdict(policy).items()}
    return {"kind": names.get(kind, kind), **values}


def policy_text(policy: CachePolicy | None) -> str:
    """A cache policy as text, under the names of `policy_key`, such as "Local(budget=64)"."""
    if policy is None:
        return "None"
    names, kind = policy.stored_names, type(policy).__name__
    arguments = [f"{names.get(f.name, f.name)}={getattr(policy, f.name)!r}" for f in fields(policy)]
    return f"{names.get(kind, kind)}({', '.join(arguments)})"


def in_tokens(share: float | int, tokens: int) -> int:
    """A number of tokens: itself (int), or that fraction (float) of so many, rounded down."""
    # A budget of 0.7 of 10 tokens is 7, although 0.7 * 10 is a little less in binary.
    return int(share * tokens + 1e-9) if isinstance(share, float) else share


def budget_in_tokens(budget: float | int, prompt_tokens: int) -> int:
    """A budget in tokens, at least 1."""
    return max(1, in_tokens(budget, prompt_tokens))


def split_with_sinks(sink_tokens: int, heavy: int, recent: int) -> Split:
    """A split whose heavy hitters include the first `sink_tokens`, with a place for the newest token.

    Where the heavy hitters are fewer, recent tokens give way, up to the last one.
    """
    protected = min(sink_tokens, heavy + recent - 1)
    given_way = max(0, protected - heavy)
    return Split(protected, heavy + given_way - protected, recent - given_way)
