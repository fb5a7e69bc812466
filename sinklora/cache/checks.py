"""What only policies are asked: among whom slots are shared, and whether sinks leave a place."""

from __future__ import annotations

from sinklora.ranges import check_count, check_fraction

SHARED_AMONG = ("head", "layer", "model")  # see `policies.Sharing`


def check_sharing(share: object, own_share: object) -> None:
    """How slots can be shared: among what, and how much is a head's own. ValueError naming the argument."""
    if share not in SHARED_AMONG:
        raise ValueError(f"share={share!r}: expected one of {', '.join(SHARED_AMONG)}")
    check_fraction("own_share", own_share, "the heavy hitters")


def check_sinks(sink_tokens: object, budget: object) -> None:
    """So many first tokens that another one has a place beside them in a budget of tokens."""
    sinks = check_count("sink_tokens", sink_tokens)
    if isinstance(budget, int) and sinks >= budget:
        raise ValueError(
            f"sink_tokens={sinks}: leaves no place for a new token in a budget of {budget}; give fewer "
            "sink tokens or a larger budget"
        )
