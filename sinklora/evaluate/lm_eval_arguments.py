"""What lm-evaluation-harness hands on to a model: numbers may come as text, and all is checked at once."""

from sinklora.cache.policies import CachePolicy, make_policy, parse_budget
from sinklora.hf.budget_cache import POSITIONS
from sinklora.records.checks import Count, check_choice, check_value


def policy_of(kv: str | CachePolicy, budget: str | int | float | None) -> CachePolicy | None:
    """The policy of a name and a budget; None: the model's own cache."""
    amount = parse_budget(budget)
    if isinstance(kv, CachePolicy):
        if amount is not None:
            raise ValueError(f"budget={budget!r}: kv={kv!r} has its own; leave it out")
        return kv
    policy = make_policy(kv, amount)
    return None if kv == "full" else policy


def positions_of(positions: str, policy: CachePolicy | None) -> str:
    """Where a cache counts positions; ValueError where there is no cache of ours to count in."""
    check_choice("positions", positions, POSITIONS)
    if positions != "text" and policy is None:
        raise ValueError(f"positions={positions!r}: kv='full' is the model's own cache; choose a policy")
    return positions


def chunk_of(tokens: str | int | None, policy: CachePolicy | None) -> int | None:
    """Tokens that are read at once into a cache; ValueError where there is no cache of ours to read into."""
    if tokens is not None and policy is None:
        raise ValueError(f"prefill_chunk={tokens!r}: kv='full' is the model's own cache; choose a policy")
    return tokens_of("prefill_chunk", tokens)


def tokens_of(name: str, value: str | int | None) -> int | None:
    """A number of tokens, also from text; None stays. Raises ValueError or TypeError naming it."""
    if isinstance(value, str):
        if not value.isdecimal():
            raise ValueError(f"{name}={value!r}: expected a number of tokens")
        value = int(value)
    check_value(name, value, Count | None)
    return value
