"""What a bounded key/value cache keeps: H2O (arXiv 2306.14048), Local, StreamingLLM (arXiv 2309.17453), Full.

A policy splits its budget: the first ``protected`` tokens and the ``recent`` newest ones always stay, and of
the others the ``heavy`` ones with the highest score, the heavy hitters. Everything else is evicted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

UNBOUNDED = 2**62


class Split(NamedTuple):
    """A budget in tokens: protected + heavy + recent."""

    protected: int
    heavy: int
    recent: int

    @property
    def total(self) -> int:
        return self.protected + self.heavy + self.recent


@dataclass(frozen=True)
class Score:
    """How the attention that a token receives becomes its score, per layer and key/value head, in float32.

    The plain sum over all queries is H2O's. ``decay`` < 1 multiplies what was before with every query,
    ``window`` counts the last queries only, ``average`` divides the sum by the number of queries that could
    see the token. Raises ValueError naming the argument.
    """

    decay: float = 1.0
    window: int = 0
    average: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay!r}: expected a number above 0 and at most 1")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 0:
            raise ValueError(f"window={self.window!r}: expected a number of queries, or 0 for all")
        if (self.decay < 1) + (self.window > 0) + self.average > 1:
            raise ValueError(f"{self}: give one of decay, window and average")


SUMMED = Score()


@dataclass(frozen=True)
class ValueNovelty:
    """A token's score is 1 - cos(its value, the most similar value of a newer token), so at most 2.

    No attention enters it. Tokens that nothing newer repeats score high; of repetitions the newest does. What
    is below eight roundings of the values' dtype is 0: equal values are equal, however they were multiplied.
    """


@dataclass(frozen=True)
class CachePolicy:
    """What every policy says: how a budget is split for a prompt, and by which score heavy hitters are found.

    ``budget`` is a fraction of the prompt (float, above 0 and up to 1) or tokens (int, at least 1).
    """

    budget: float | int

    def __post_init__(self) -> None:
        check_share("budget", self.budget)

    @property
    def score(self) -> Score | ValueNovelty | None:
        """The score of heavy hitters; None where the policy needs none."""
        return None

    def split(self, prompt_tokens: int) -> Split:
        """The budget in tokens for a prompt of so many tokens; at least one token."""
        raise NotImplementedError

    def described_split(self, prompt_tokens: int) -> str:
        """What stays of a prompt of so many tokens, in words, such as "6 chosen, 32 newest of 384"."""
        parts = self.split(prompt_tokens)
        if parts.total >= UNBOUNDED:
            return f"all {prompt_tokens}"
        named = {"first": parts.protected, "chosen": parts.heavy, "newest": parts.recent}
        return ", ".join(f"{n} {what}" for what, n in named.items() if n) + f" of {prompt_tokens}"


@dataclass(frozen=True)
class Full(CachePolicy):
    """Everything stays: the baseline, in the same code."""

    budget: float | int = field(default=UNBOUNDED, init=False)

    def split(self, prompt_tokens: int) -> Split:
        return Split(0, 0, UNBOUNDED)


@dataclass(frozen=True)
class Local(CachePolicy):
    """The newest tokens (H2O's baseline "Local": no heavy hitters)."""

    def split(self, prompt_tokens: int) -> Split:
        return Split(0, 0, in_tokens(self.budget, prompt_tokens))


@dataclass(frozen=True)
class StreamingLLM(CachePolicy):
    """The first ``sink_tokens`` tokens and the newest ones; together they make the budget.

    Where the budget is not larger than ``sink_tokens``, one token of it is recent and the others are sinks.
    """

    sink_tokens: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sink_tokens", self.sink_tokens)
        _check_protected("sink_tokens", self.sink_tokens, self.budget)

    def split(self, prompt_tokens: int) -> Split:
        total = in_tokens(self.budget, prompt_tokens)
        sinks = min(self.sink_tokens, total - 1)
        return Split(sinks, 0, total - sinks)


@dataclass(frozen=True)
class H2O(CachePolicy):
    """Heavy hitters and the newest tokens (H2O, arXiv 2306.14048, Algorithm 1).

    Give ``budget`` alone (split evenly, as in the H2O release), ``budget`` and ``recent``, or ``heavy`` and
    ``recent``; each a fraction of the prompt or tokens, of one kind. ``protect``: so many first tokens are
    never evicted; they count as heavy hitters, and where a share of the prompt is too small for them recent
    tokens give way, up to the last one. ``how``: the score, summed attention unless given.
    Raises ValueError naming the argument.
    """

    budget: float | int | None = None  # type: ignore[assignment]
    heavy: float | int | None = None
    recent: float | int | None = None
    protect: int = 0
    how: Score = SUMMED

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("budget", "heavy", "recent")}
        given = {name: value for name, value in given.items() if value is not None}
        if set(given) not in ({"budget"}, {"budget", "recent"}, {"heavy", "recent"}):
            raise ValueError(f"{given}: give budget, budget and recent, or heavy and recent")
        for name, value in given.items():
            check_share(name, value, zero=name != "budget")
        if len({isinstance(value, float) for value in given.values()}) > 1:
            raise ValueError(f"{given}: give all of them in tokens (int) or all as fractions (float)")
        if self.budget is not None and self.recent is not None and self.recent > self.budget:
            raise ValueError(f"recent={self.recent!r} is larger than budget={self.budget!r}")
        if self.heavy is not None and self.recent is not None:
            check_share("heavy + recent", self.heavy + self.recent)
        check_count("protect", self.protect)
        _check_protected("protect", self.protect, self._most())
        if isinstance(self.recent, int) and self.protect > self._most() - self.recent:
            raise ValueError(
                f"protect={self.protect}: more than the {self._most() - self.recent} heavy hitters beside "
                f"recent={self.recent}, of which protected tokens are a part"
            )

    @property
    def score(self) -> Score | ValueNovelty | None:
        return self.how

    def _most(self) -> float | int:
        return self.budget if self.budget is not None else (self.heavy or 0) + (self.recent or 0)

    def split(self, prompt_tokens: int) -> Split:
        if self.budget is None:
            assert self.heavy is not None and self.recent is not None  # checked above
            recent = _tokens(self.recent, prompt_tokens)
            heavy = max(_tokens(self.heavy, prompt_tokens), 1 - recent)
        else:
            total = in_tokens(self.budget, prompt_tokens)
            recent = total - total // 2 if self.recent is None else _tokens(self.recent, prompt_tokens)
            heavy = total - recent
        return _with_protected(self.protect, heavy, recent)


@dataclass(frozen=True)
class Novelty(CachePolicy):
    """The newest tokens, and of the older ones those whose value no newer token repeats.

    Ours, not the paper's: ``share`` of the budget goes to tokens chosen by `ValueNovelty`, per layer and
    key/value head, as far as it leaves ``always_recent`` newest ones; ``protect`` as in H2O. R-KV
    (arXiv 2505.24133) scores by the similarity of keys together with attention; here the values alone
    decide, so the prompt needs no attention weights.
    """

    share: float = 0.25
    always_recent: int = 32
    protect: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.share, bool) or not isinstance(self.share, float) or not 0 < self.share < 1:
            raise ValueError(f"share={self.share!r}: expected a fraction of the budget between 0 and 1")
        check_count("always_recent", self.always_recent)
        check_count("protect", self.protect)
        _check_protected("protect", self.protect, self.budget)

    @property
    def score(self) -> Score | ValueNovelty | None:
        return ValueNovelty()

    def split(self, prompt_tokens: int) -> Split:
        total = in_tokens(self.budget, prompt_tokens)
        heavy = max(0, min(_tokens(self.share, total), total - max(self.always_recent, 1)))
        return _with_protected(self.protect, heavy, total - heavy)


POLICIES: dict[str, type[CachePolicy]] = {
    "full": Full,
    "h2o": H2O,
    "local": Local,
    "streaming": StreamingLLM,
    "novelty": Novelty,
}


def make_policy(name: str, budget: float | int | None = None) -> CachePolicy:
    """The policy of a name in POLICIES with a budget; ``full`` takes none. Raises ValueError."""
    if name not in POLICIES:
        raise ValueError(f"kv={name!r}: expected one of {', '.join(POLICIES)}")
    if name == "full":
        if budget is not None:
            raise ValueError(f"budget={budget!r}: the full cache has none; leave it out or choose another kv")
        return Full()
    if budget is None:
        raise ValueError(f"kv={name!r} needs a budget: a fraction of the prompt such as 0.2, or tokens")
    return POLICIES[name](budget)


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


def policy_key(policy: CachePolicy | None) -> dict[str, Any] | None:
    """A cache policy as JSON, for what measurements are stored under; None: the model's own cache."""
    return None if policy is None else {"kind": type(policy).__name__, **asdict(policy)}


def in_tokens(share: float | int, prompt_tokens: int) -> int:
    """A budget in tokens: itself, or that fraction of the prompt rounded down, and at least 1."""
    return max(1, _tokens(share, prompt_tokens))


def _with_protected(protect: int, heavy: int, recent: int) -> Split:
    """A split whose heavy hitters are at least the protected tokens, with a place for the newest token."""
    protected = min(protect, heavy + recent - 1)
    given_way = max(0, protected - heavy)
    return Split(protected, heavy + given_way - protected, recent - given_way)


def _tokens(share: float | int, prompt_tokens: int) -> int:
    # A budget of 0.7 of 10 tokens is 7, although 0.7 * 10 is a little less in binary.
    return int(share * prompt_tokens + 1e-9) if isinstance(share, float) else share


def check_share(name: str, value: object, zero: bool = False) -> None:
    """Raise ValueError unless the value is a fraction (float, up to 1) or a number of tokens (int)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r}: expected a fraction of the prompt (float) or tokens (int)")
    if not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name}={value!r}: expected more than 0")
    if isinstance(value, float) and value > 1:
        raise ValueError(f"{name}={value!r}: a fraction of the prompt is at most 1.0; give tokens as int")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is a number of tokens, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}={value!r}: expected a number of tokens, 0 or more")


def _check_protected(name: str, protected: int, budget: object) -> None:
    if isinstance(budget, int) and protected >= budget:
        raise ValueError(f"{name}={protected}: leaves no place for a new token in a budget of {budget}")
