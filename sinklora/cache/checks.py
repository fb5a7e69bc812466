"""What the numbers of a policy may be: ValueError that names the argument, its value and what to give."""

from __future__ import annotations

from math import isfinite

SHARED_AMONG = ("head", "layer", "model")  # see `policies.Sharing`


def check_budget(name: str, value: object, zero: bool = False) -> None:
    """A fraction of the prompt (float, up to 1) or a number of tokens (int); more than 0 unless `zero`."""
    if not _is_number(value):
        raise ValueError(f"{name}={value!r}: expected a fraction of the prompt (float) or tokens (int)")
    if not (value >= 0 if zero else value > 0):  # type: ignore[operator]
        raise ValueError(f"{name}={value!r}: expected {'0 or more' if zero else 'more than 0'}")
    if isinstance(value, float) and value > 1:
        raise ValueError(f"{name}={value!r}: a fraction of the prompt is at most 1.0; give tokens as int")


def check_count(name: str, value: object, least: int = 0) -> None:
    """A whole number, `least` or more."""
    if not _is_number(value) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")


def check_fraction(name: str, value: object, of: str) -> None:
    """A fraction of something, 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r}: expected a fraction of {of}, 0 to 1")


def check_decay(value: object) -> None:
    """What is left of a score after another query: above 0, and at most 1, which is all of it."""
    if not _is_number(value) or not 0 < value <= 1:  # type: ignore[operator]
        raise ValueError(f"decay={value!r}: expected a number above 0 and at most 1")


def check_weight(name: str, value: object) -> None:
    """A finite number, 0 or more."""
    if not _is_number(value) or not isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise ValueError(f"{name}={value!r}: expected a number, 0 or more")


def check_sharing(share: object, own_share: object) -> None:
    """How slots can be shared: among what, and how much is a head's own."""
    if share not in SHARED_AMONG:
        raise ValueError(f"share={share!r}: expected one of {', '.join(SHARED_AMONG)}")
    check_fraction("own_share", own_share, "the heavy hitters")


def check_sinks(sink_tokens: object, budget: object) -> None:
    """So many first tokens that another one has a place beside them in a budget of tokens."""
    check_count("sink_tokens", sink_tokens)
    if isinstance(budget, int) and isinstance(sink_tokens, int) and sink_tokens >= budget:
        raise ValueError(
            f"sink_tokens={sink_tokens}: leaves no place for a new token in a budget of {budget}; give fewer "
            "sink tokens or a larger budget"
        )


def _is_number(value: object) -> bool:
    """Whether it is a number; True is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
