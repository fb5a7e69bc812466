"""What every attention pattern is: a frozen value with one predicate, from which everything else follows."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from sinklora.ranges import check_count, check_tokens

if TYPE_CHECKING:
    from sinklora.attention.kinds.windows import AttentionPattern

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

KINDS: dict[str, type[Pattern]] = {}
"""Every class of patterns by its `kind`; a class enters itself when it is defined."""


@dataclass(frozen=True)
class Pattern(ABC):
    """Which keys a query sees; a new kind of pattern is a frozen dataclass that defines `kind` and `sees`.

    `group_size` is the window `G`: tokens (int), or a fraction (float in (0, 1]) of the length of each
    document. Padding and what a document is packed with do not count, so that a document is attended alike
    alone, padded and packed. Every field has a default.
    """

    kind: ClassVar[str]
    whole_rows_only: ClassVar[bool] = False  # no padding, no packed documents
    former_names: ClassVar[Mapping[str, str]] = {}  # of fields, as stored by earlier versions -> present name
    _ratio: ClassVar[tuple[int, int]]  # no field, because it follows from `group_size`
    group_size: int | float = 0.25

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        kind = cls.__dict__.get("kind")
        if not isinstance(kind, str):
            raise TypeError(f"{cls.__name__} needs a `kind` of its own, by which it is stored and found")
        other = KINDS.get(kind)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"kind={kind!r} of {cls.__name__} is taken by {other.__name__}: choose another")
        KINDS[kind] = cls

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_size", check_tokens("group_size", self.group_size, "the document"))
        # The simplest fraction near: 0.1 of 30 tokens is 3, not ceil(3.0000000000000004). As integers, with
        # which compilers compute for documents of any length.
        ratio = Fraction(max(self.group_size, 1e-6)).limit_denominator(10**6)
        object.__setattr__(self, "_ratio", (ratio.numerator, ratio.denominator))

    @abstractmethod
    def sees(
        self,
        head: Tensor,
        query: Tensor,
        key: Tensor,
        *,
        num_heads: int,
        group: int | Tensor,
        length: int | Tensor,
    ) -> Tensor:
        """Visible (bool), for int tensors that broadcast; `query` and `key` count from their document's
        start.

        `length` is the length of the document in tokens and `group` its `group_tokens`. Integer arithmetic
        only, within 32 bits: FlexAttention compiles it into its kernel.
        """

    def windows(self) -> AttentionPattern | None:
        """Windows that see the same, which the fast kernels take; None (the default) where there are none."""
        return None

    def around(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`attention` by this pattern; one that moves tokens before or after it is more than a mask."""
        return attention(query, key, value)

    @overload
    def group_tokens(self, length: int) -> int: ...

    @overload
    def group_tokens(self, length: Tensor) -> int | Tensor: ...

    def group_tokens(self, length: int | Tensor) -> int | Tensor:
        """The window `G` in tokens, in documents of `length` tokens (int, or ints): fractions round up."""
        if isinstance(self.group_size, int):
            return self.group_size
        numerator, denominator = self._ratio
        return -(length * -numerator // denominator)

    def mask_mod(self, num_heads: int, num_tokens: int, document_ids: Tensor | None = None) -> MaskMod:
        """The pattern as FlexAttention's `mask_mod(b, h, q_idx, kv_idx) -> bool`.

        `document_ids` [B, N] (int), on the device of the indices: runs of equal ids are documents, which
        never see each other; windows, sinks and wrapping then count from the start of each document.
        """
        check_count("num_heads", num_heads, least=1)
        check_count("num_tokens", num_tokens, least=1)
        if document_ids is None:
            sizes = {"num_heads": num_heads, "group": self.group_tokens(num_tokens), "length": num_tokens}
            return lambda b, h, q_idx, kv_idx: self.sees(h, q_idx, kv_idx, **sizes)
        starts, lengths = document_spans(document_ids, num_tokens)
        # Fractions become tokens here, once for each document: kernels count in 32 bits.
        groups = self.group_tokens(lengths)

        def packed(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            start, length = starts[b, q_idx], lengths[b, q_idx]
            group = groups[b, q_idx] if isinstance(groups, Tensor) else groups
            query, key = q_idx - start, kv_idx - start
            seen = self.sees(h, query, key, num_heads=num_heads, group=group, length=length)
            return (start == starts[b, kv_idx]) & seen

        return packed

    def visible(
        self,
        num_heads: int,
        num_tokens: int,
        document_ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The dense mask: bool [H, N, N], or [B, H, N, N] with `document_ids` [B, N], on their device."""
        mask_mod = self.mask_mod(num_heads, num_tokens, document_ids)
        device = device if document_ids is None else document_ids.device
        batch = 1 if document_ids is None else document_ids.shape[0]
        b = torch.arange(batch, device=device)[:, None, None, None]
        h = torch.arange(num_heads, device=device)[:, None, None]
        token = torch.arange(num_tokens, device=device)
        mask = mask_mod(b, h, token[:, None], token).expand(batch, num_heads, num_tokens, num_tokens)
        return mask[0] if document_ids is None else mask

    def density(self, num_heads: int, num_tokens: int) -> float:
        """Visible pairs over causal pairs, all heads: the attention work as a share of full attention's."""
        mask_mod = self.mask_mod(num_heads, num_tokens)
        head, token = torch.arange(num_heads)[:, None, None], torch.arange(num_tokens)
        rows = max(1, 2**22 // (num_heads * num_tokens))  # bounded memory at any length
        chunks = (mask_mod(head, head, chunk[:, None], token) for chunk in token.split(rows))
        seen = sum(int(mask.expand(num_heads, -1, -1).sum()) for mask in chunks)
        return seen / (num_heads * triangle(num_tokens))

    def picture(self, num_tokens: int = 16, num_heads: int = 2, document_ids: Tensor | None = None) -> Any:
        """A matplotlib Figure: one square per head, queries down, keys across; legible in grey.

        `document_ids` [1, N] (int). Dark: the own window (all, in patterns without windows); grey: what is
        visible beyond it (sinks); hatched: keys in the future.
        """
        windows = self.windows()
        own = self if windows is None else dataclasses.replace(windows, sink_tokens=0)
        shape = (-1, num_heads, num_tokens, num_tokens)
        masks = (p.visible(num_heads, num_tokens, document_ids).reshape(shape)[0] for p in (self, own))
        return _draw(*masks)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; `pattern_from_dict` restores an equal pattern."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def document_spans(document_ids: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """For each token [B, N]: where its document starts in the row, and how many tokens that document has.

    A document is a maximal run of equal `document_ids` [B, N] (int) in a row. ValueError for anything else.
    """
    if not isinstance(document_ids, Tensor) or document_ids.ndim != 2 or document_ids.shape[1] != num_tokens:
        actual = list(document_ids.shape) if isinstance(document_ids, Tensor) else type(document_ids).__name__
        raise ValueError(f"document_ids must be a tensor [B, N] with N = {num_tokens} tokens, got {actual}")
    if document_ids.is_floating_point() or document_ids.is_complex():
        raise ValueError(f"document_ids must be integers, got {document_ids.dtype}")
    token = torch.arange(num_tokens, device=document_ids.device).expand(document_ids.shape)
    edge = torch.ones_like(document_ids[:, :1], dtype=torch.bool)
    changes = document_ids[:, 1:] != document_ids[:, :-1]
    first, last = torch.cat([edge, changes], 1), torch.cat([changes, edge], 1)
    starts = torch.where(first, token, 0).cummax(1).values
    ends = torch.where(last, token, num_tokens).flip(1).cummin(1).values.flip(1)
    return starts, ends - starts + 1


def triangle(count: int) -> int:
    """Causal pairs among `count` tokens."""
    return count * (count + 1) // 2


def _draw(mask: Tensor, own: Tensor) -> Any:
    """The picture of a `mask` [H, N, N] of which `own` [H, N, N] is drawn dark."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    heads, num_tokens, _ = mask.shape
    future = mask & torch.ones_like(mask).triu(1)
    figure = Figure(figsize=(2.4 * heads, 2.7), layout="constrained")
    edges = (torch.arange(num_tokens + 1) - 0.5).numpy()
    colours = ListedColormap(["#ffffff", "#b0b0b0", "#303f5f"])
    for head, axes in enumerate(figure.subplots(1, heads, squeeze=False)[0]):
        shade = mask[head].int() + (own & mask)[head].int()
        grid = {"edgecolors": "#dddddd", "linewidth": 0.3}
        axes.pcolormesh(edges, edges, shade.numpy(), cmap=colours, vmin=0, vmax=2, **grid)
        for i, j in future[head].nonzero().tolist():
            x, y = [j - 0.5, j + 0.5], (i - 0.5, i + 0.5)
            axes.fill_between(x, *y, facecolor="#e8a080", edgecolor="#000000", hatch="xxx", linewidth=0)
        axes.set(title=f"head {head}", xlabel="key", ylabel="query", aspect="equal")
        axes.invert_yaxis()
    return figure
