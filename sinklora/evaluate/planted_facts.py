"""Recall of several facts planted in real text, through any cache: exact answers and nats an answer.

Sentences that have nothing to do with a text, nor with each other, are put into it at depths drawn anew for
each passage, so that no policy's window covers just those that are asked for, and each is asked for in other
words. No sentence occurs twice, so that a policy that drops repetitions gains nothing.
"""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from sinklora.evaluate.fact_templates import TEMPLATES, FactTemplate
from sinklora.evaluate.pass_keys import CacheFactory, check_answering
from sinklora.hf.device import input_device
from sinklora.hf.rope import forget_longest_input
from sinklora.records.checks import check_counts

SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".”", "!”", "?”")


@dataclass(frozen=True)
class PlantedFact:
    """A fact of one passage: its template, its answer, and the share of the passage's tokens before it."""

    template: FactTemplate
    answer: str
    depth: float


@dataclass(frozen=True)
class FactPassage:
    """Token ids of a text with facts in it."""

    ids: np.ndarray
    facts: tuple[PlantedFact, ...]


@dataclass(frozen=True)
class FactAnswer:
    """How a fact was given back: nats of the whole answer, and whether greedy decoding writes it."""

    nats: float
    exact: bool


@dataclass(frozen=True)
class _Places:
    """Where facts may stand: behind tokens that end a sentence (`ends`), or in `code` before those that end a
    line (`starts`: with a line break).

    In code a dot ends no sentence, most often it stands inside of a name.
    """

    ends: frozenset[int]
    starts: frozenset[int]
    code: bool

    @property
    def before(self) -> str:
        """What a fact begins with."""
        return "\n# " if self.code else " "

    def at(self, text: np.ndarray, stop: int) -> bool:
        """Whether a fact may stand before the token with the number `stop`."""
        if not self.code:
            return int(text[stop - 1]) in self.ends
        return stop < len(text) and int(text[stop]) in self.starts


def plant_facts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[np.ndarray],
    *,
    tokens: int,
    seed: int,
    facts: int = 4,
    code: bool = False,
    templates: Sequence[FactTemplate] = TEMPLATES,
) -> list[FactPassage]:
    """A passage of exactly `tokens` tokens of each text (token ids), with `facts` facts of `templates` in it.

    Depths are uniform; a fact stands behind an end of a sentence near its depth, in `code` as a comment on a
    line of its own, or where there is no such place, at its depth. The templates of a passage differ; the
    same arguments give the same passages. Raises ValueError for a text that is too short for `tokens`, for
    `tokens` that leave less than half of the passage for other text, and for more facts than there are
    templates.
    """
    check_counts(tokens=tokens, facts=facts)
    if facts > len(templates):
        raise ValueError(f"facts={facts}: expected at most the {len(templates)} that there are")
    rng = random.Random(f"planted facts/{seed}/{tokens}/{facts}")
    pieces = [_piece(tokenizer, i) for i in range(len(tokenizer))]
    places = _Places(
        ends=frozenset(i for i, piece in enumerate(pieces) if piece.rstrip().endswith(SENTENCE_ENDS)),
        starts=frozenset(i for i, piece in enumerate(pieces) if piece.startswith("\n")),
        code=code,
    )
    return [_plant(tokenizer, text, tokens, rng.sample(templates, facts), rng, places) for text in texts]


def _plant(
    tokenizer: PreTrainedTokenizerBase,
    text: np.ndarray,
    tokens: int,
    chosen: Sequence[FactTemplate],
    rng: random.Random,
    allowed: _Places,
) -> FactPassage:
    answers = [template.draw(rng) for template in chosen]
    said = [
        _ids(tokenizer, allowed.before + template.statement.format(answer=answer))
        for template, answer in zip(chosen, answers, strict=True)
    ]
    rest = tokens - sum(map(len, said))
    if 2 * rest < tokens:
        raise ValueError(
            f"tokens={tokens}: too few for {len(chosen)} facts in a text; give {4 * (tokens - rest)}"
        )
    if len(text) < rest:
        raise ValueError(f"texts: expected texts of {rest} tokens or more, not {len(text)}")
    text = np.asarray(text[:rest], dtype=np.int64)
    places = sorted(rng.randrange(rest + 1) for _ in chosen)
    pieces: list[np.ndarray] = []
    facts, begin, placed = [], 0, 0
    for place, template, answer, ids in zip(places, chosen, answers, said, strict=True):
        stop = _nearest(text, place, begin, allowed)
        placed += stop - begin
        facts.append(PlantedFact(template, answer, placed / tokens))
        pieces += [text[begin:stop], np.array(ids)]
        begin, placed = stop, placed + len(ids)
    return FactPassage(np.concatenate([*pieces, text[begin:]]), tuple(facts))


def _nearest(text: np.ndarray, place: int, least: int, allowed: _Places) -> int:
    """The nearest allowed place before `place`, from `least` on, else behind it; none: `place` itself."""
    before, behind = range(place, max(least, 1) - 1, -1), range(place + 1, len(text) + 1)
    return next((stop for stop in (*before, *behind) if allowed.at(text, stop)), place)


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token]))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def recalled_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[FactPassage],
    make_cache: CacheFactory,
    *,
    question_later: bool = False,
    batch_size: int = 8,
    progress: bool = True,
) -> list[tuple[FactAnswer, ...]]:
    """How each fact of each passage (all of one length) is given back through a cache.

    The question is read with the passage, as one prompt; `question_later` reads it after the passage has been
    evicted. Answers are read token by token, so that eviction goes on. Raises ValueError in training mode and
    for passages of different lengths.
    """
    check_answering(model, batch_size=batch_size)
    if len({len(passage.ids) for passage in passages}) != 1:
        raise ValueError("passages: expected at least one, and all of the same number of tokens")
    read = _asked_later if question_later else _asked_at_once
    recalled: dict[tuple[int, int], FactAnswer] = {}
    batches = [range(b, min(b + batch_size, len(passages))) for b in range(0, len(passages), batch_size)]
    for batch in tqdm(batches, desc="planted facts", disable=not progress):
        for places, cache, ids in read(model, tokenizer, passages, batch, make_cache):
            answers = [_ids(tokenizer, " " + passages[p].facts[f].answer) for p, f in places]
            recalled |= dict(zip(places, _answers(model, cache, ids, answers), strict=True))
    return [tuple(recalled[p, f] for f in range(len(passage.facts))) for p, passage in enumerate(passages)]


Asked = Iterator[tuple[list[tuple[int, int]], Cache, Tensor]]


def _asked_at_once(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[FactPassage],
    batch: range,
    make_cache: CacheFactory,
) -> Asked:
    """Places of facts (passage, fact), an empty cache, and passage and question to be read."""
    for places, question in _by_question(tokenizer, passages, batch):
        rows = [np.concatenate([passages[p].ids, question]) for p, _ in places]
        yield places, make_cache(), torch.from_numpy(np.stack(rows)).to(input_device(model))


def _asked_later(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[FactPassage],
    batch: range,
    make_cache: CacheFactory,
) -> Asked:
    """Places of facts, a copy of what the cache has kept of their passages, and the question to be read."""
    cache = make_cache()
    forget_longest_input(model)
    device = input_device(model)
    ids = torch.from_numpy(np.stack([passages[p].ids for p in batch])).to(device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for places, question in _by_question(tokenizer, passages, batch):
        own: Any = copy.deepcopy(cache)
        own.batch_select_indices(torch.tensor([p - batch.start for p, _ in places], device=device))
        yield places, own, torch.tensor([question] * len(places), device=device)


def _by_question(
    tokenizer: PreTrainedTokenizerBase, passages: Sequence[FactPassage], batch: range
) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """The facts of a batch with the same question, which so need no padding, and its token ids."""
    groups: dict[FactTemplate, list[tuple[int, int]]] = {}
    for p in batch:
        for f, fact in enumerate(passages[p].facts):
            groups.setdefault(fact.template, []).append((p, f))
    for template, places in groups.items():
        yield places, _ids(tokenizer, f"\n\nQuestion: {template.question}\nAnswer: {template.reply}")


def _answers(
    model: PreTrainedModel, cache: Cache, ids: Tensor, answers: Sequence[list[int]]
) -> list[FactAnswer]:
    """Reads `ids` [B, N], then each row's answer; one that has ended repeats its last token, unscored."""
    longest = max(map(len, answers))
    targets = torch.tensor([a + a[-1:] * (longest - len(a)) for a in answers], device=ids.device)
    nats, greedy = [], []
    forget_longest_input(model)
    for place in range(longest):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        target = targets[:, place]
        nats.append(torch.nn.functional.cross_entropy(logits, target, reduction="none").double())
        greedy.append(logits.argmax(-1) == target)
        ids = target[:, None]
    losses, right = torch.stack(nats, 1).cpu(), torch.stack(greedy, 1).cpu()
    return [
        FactAnswer(float(losses[row, : len(a)].sum()), bool(right[row, : len(a)].all()))
        for row, a in enumerate(answers)
    ]


def chance_nats(fact: PlantedFact) -> float:
    """Nats of a fact's answer where all possible ones are as likely."""
    return -math.log(fact.template.chance)
