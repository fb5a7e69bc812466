"""A conversation about one document on one bounded cache: read it once, ask as often as you like."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from threading import Event, Thread
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from sinklora.cache.policies import CachePolicy
from sinklora.chat.costs import Cost, full_cache_bytes
from sinklora.chat.documents import Document
from sinklora.chat.reading import Plan, Progress, Stopped, plan_reading, policy_tokens, watched
from sinklora.chat.template import ChatTemplate
from sinklora.evaluate.read_prompt import end_tokens
from sinklora.evaluate.timing import timed
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import trained_length
from sinklora.hf.device import input_device
from sinklora.hf.greedy import GREEDY
from sinklora.hf.rope import forget_longest_input
from sinklora.records.checks import check_counts

ANSWER = 256  # tokens of an answer, at most


class EvictedError(ValueError):
    """More tokens are asked for than the cache still has."""


class Conversation:
    """A document in a cache of `policy`'s budget, and questions about it.

    The budget, as a fraction, is one of the document's tokens; from then on it is a number of tokens, which
    questions and answers share with the document. `stream`: a document longer than the model was trained for
    is read in pieces (see `plan_reading`). One thread at a time. Raises ValueError for a model without a
    usable chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        policy: CachePolicy,
        *,
        stream: bool = False,
        answer_tokens: int = ANSWER,
    ) -> None:
        check_counts(answer_tokens=answer_tokens)
        self.model, self.tokenizer, self.policy = model, tokenizer, policy
        self.stream, self.answer_tokens = stream, answer_tokens
        self.template = ChatTemplate.of(tokenizer)
        self.document: Document | None = None
        self.cache: BudgetCache | None = None
        self._ids: list[int] = []  # all that was read and written
        self._turns = 0
        self._trained = trained_length(model.config)
        self._spent = Cost(0, 0.0, 0, 0.0, 0, 0)

    # --- reading --------------------------------------------------------------------------------------------

    def read(
        self,
        document: Document,
        policy: CachePolicy | None = None,
        *,
        progress: Progress = lambda share: None,
        stop: Event | None = None,
    ) -> None:
        """Read a document in place of what was read before, and have that `policy` from now on if one is
        given; the conversation begins anew.

        `progress` is told the share that is read. Raises `Stopped` within a layer's time once `stop` is set,
        ValueError for a document that is too long; nothing is changed then, the policy neither.
        """
        policy = policy or self.policy
        ids = self.template.opening(document.text)
        plan = plan_reading(policy, len(ids), self._trained, self.stream)
        # Questions are read in such pieces, too: what the cache holds and a piece are what positions count.
        pieces = plan.at_once if plan.positions == "cache" else None
        fixed = policy.with_fixed_budget(len(ids))
        cache = BudgetCache(self.model, fixed, positions=plan.positions, prefill_chunk=pieces)
        read = partial(self._read_into, cache, ids, plan, progress, stop or Event())
        # on a GPU until it is done, not until it is asked for
        seconds = timed(read, input_device(self.model)).wall
        self.policy, self.document, self.cache = policy, document, cache
        self._ids, self._turns = ids, 0
        self._spent = replace(self._spent, read_tokens=len(ids), read_seconds=seconds, written_tokens=0)

    @torch.inference_mode()
    def _read_into(
        self, cache: BudgetCache, ids: list[int], plan: Plan, progress: Progress, stop: Event
    ) -> None:
        pieces = torch.tensor([ids], device=input_device(self.model)).split(plan.at_once, 1)
        forget_longest_input(self.model)
        with watched(self.model, progress, stop.is_set) as begin:
            for number, piece in enumerate(pieces):
                begin(number, len(pieces))
                self.model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)

    # --- asking ---------------------------------------------------------------------------------------------

    def ask(self, question: str, *, stop: Event | None = None) -> Iterator[str]:
        """Pieces of the answer as they are written, greedily, until it ends or `stop` is set.

        A stopped answer stays in the conversation as far as it came. One that fails, or is stopped while the
        question is read (`Stopped`), ends the conversation: the document has to be read again. Raises
        ValueError, before anything is read, without a document, for an empty question, and where no room is
        left for an answer.
        """
        if self.cache is None:
            raise ValueError(
                "document=None: read one before asking"
                if self.document is None
                else f"document={self.document.name!r}: an answer about it failed half-way: read it again"
            )
        if not question.strip():
            raise ValueError(f"question={question!r}: is empty")
        ids = [*self._before_next_turn(), *self.template.question(question.strip())]
        self._check_room(len(ids))
        self.cache.limit(self.policy.with_fixed_budget(self._spent.read_tokens))
        return self._answer(ids, stop or Event())

    def _before_next_turn(self) -> list[int]:
        """All that stands before a further question; an answer is ended once, as the template does it."""
        if not self._turns:
            return self._ids
        between, end, last = self.template.next_turn(), self.template.end_place, self._ids[-1]
        if end is not None and last == between[end]:
            return [*self._ids, *between[end + 1 :]]
        # The model's other ends stand in no conversation. The cache has not read the last token yet.
        answered = self._ids[:-1] if last in end_tokens(self.model) else self._ids
        return [*answered, *between]

    def _ends(self) -> list[int]:
        """Tokens that end an answer: the model's own, and the template's, which a tuned model writes."""
        place = self.template.end_place
        of_template = [] if place is None else [self.template.next_turn()[place]]
        return sorted({*end_tokens(self.model), *of_template})

    def _check_room(self, tokens: int) -> None:
        cache = self.cache
        assert cache is not None
        if self._trained is None or cache.positions == "cache":
            return
        left = self._trained - tokens
        if left < min(self.answer_tokens, 16):
            raise ValueError(
                f"question: with it the conversation has {tokens} of the {self._trained} tokens that the "
                "model was trained for, so that no room is left for an answer: read again, to begin anew"
            )

    def _answer(self, ids: list[int], stop: Event) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[BaseException] = []
        stamps: list[float] = []

        def write() -> None:
            try:
                self._write(ids, streamer, stop, stamps)
            except BaseException as error:  # told where the answer is waited for
                # It holds some of the turn, so that a further question would go on from another text.
                self.cache = None
                failed.append(error)
                if isinstance(error, Stopped):
                    failed[-1] = Stopped("Stopped in the middle of the question: read the document again.")
                # Not `end`, which decodes once more what may have failed.
                streamer.on_finalized_text("", stream_end=True)

        writer = Thread(target=write, daemon=True)
        writer.start()
        try:
            yield from streamer
        finally:
            stop.set()
            writer.join()
        if failed:
            raise failed[0]

    def _write(self, ids: list[int], streamer: Any, stop: Event, stamps: list[float]) -> None:
        begin = time.perf_counter()
        asking = ExitStack()  # until the first token; then the answer ends at its next one

        def halt(*_: Any) -> bool:
            asking.close()
            stamps.append(time.perf_counter())
            return stop.is_set()

        room = self.answer_tokens
        if self._trained is not None and self.cache is not None and self.cache.positions == "text":
            room = min(room, self._trained - len(ids))
        forget_longest_input(self.model)  # it may be one of another conversation
        prompt = torch.tensor([ids], device=input_device(self.model))
        with asking:
            asking.enter_context(watched(self.model, lambda share: None, stop.is_set))
            written: Any = self.model.generate(  # type: ignore[operator]
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=self.cache,
                use_cache=True,
                max_new_tokens=room,
                eos_token_id=self._ends() or None,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_When(halt)]),
                pad_token_id=self.tokenizer.pad_token_id or 0,
                **GREEDY,
            )
        self._ids, self._turns = written[0].tolist(), self._turns + 1
        first, last = (stamps[0], stamps[-1]) if stamps else (begin, begin)
        self._spent = replace(
            self._spent, ask_seconds=first - begin, written_tokens=len(stamps), write_seconds=last - first
        )

    # --- the budget -----------------------------------------------------------------------------------------

    def change_budget(self, budget: float | int) -> None:
        """Keep less from the next question on, or take another budget before anything is read.

        Until then nothing is evicted, and it may be raised again. A fraction is one of the document's tokens.
        Raises EvictedError for more than the cache still has: what was evicted is gone until the document is
        read again (`read` with `with_budget`).
        """
        wanted = self.with_budget(budget)
        if self.cache is not None:
            read = self._spent.read_tokens
            now, then = policy_tokens(self.cache.policy, read), policy_tokens(wanted, read)
            if then > now:
                raise EvictedError(
                    f"budget={budget!r}: the cache has kept {now} of {read} tokens, and those it evicted are "
                    f"gone; read the document again to keep {then}"
                )
        self.policy = wanted

    def with_budget(self, budget: float | int) -> CachePolicy:
        """The policy with another budget. Raises ValueError for one that it cannot have."""
        return self.policy.with_budget(budget)

    # --- what it costs --------------------------------------------------------------------------------------

    @property
    def cost(self) -> Cost:
        """What reading and the last answer took, and what the cache holds now."""
        if self.cache is None:
            return self._spent
        return replace(
            self._spent,
            cache_bytes=self.cache.nbytes(),
            full_bytes=full_cache_bytes(self.model, len(self._ids)),
        )


class _When(StoppingCriteria):
    """Stop when a function says so; it is asked after each token."""

    def __init__(self, halt: Any) -> None:
        self.halt = halt

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        """See transformers: whether each row is done."""
        done = torch.full((len(input_ids),), self.halt(), device=input_ids.device, dtype=torch.bool)
        return done  # type: ignore[return-value]
