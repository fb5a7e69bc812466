"""A conversation is what its model says through its cache, turn by turn; nothing else changes it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from chat_models import LONG_TEXT, chat_base
from penalties import penalised
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import POLICIES, CachePolicy, make_policy
from sinklora.cache.replay import Replay
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.chat.documents import Document
from sinklora.chat.engine import Conversation, EvictedError
from sinklora.chat.reading import PIECE, ROOM, Plan, Stopped, decoder_layers, plan_reading
from sinklora.chat.template import INSTRUCTION
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.loading import LoadedModel
from sinklora.train.chat_templates import template_text

DOCUMENT = Document("code.txt", LONG_TEXT[:400])
OTHER = Document("more.txt", LONG_TEXT[400:900])


def conversation(policy: CachePolicy, **options: Any) -> Conversation:
    model, tokenizer = chat_base()
    return Conversation(model, tokenizer, policy, **({"answer_tokens": 7} | options))


def said(talk: Conversation, question: str, **options: Any) -> str:
    return "".join(talk.ask(question, **options))


@torch.no_grad()
def by_hand(policy: CachePolicy, document: Document, questions: list[str], answer_tokens: int) -> list[str]:
    """The answers, token by token, each turn one call of the model."""
    model, tokenizer = chat_base()
    template = conversation(policy).template
    cache = BudgetCache(model, policy)
    model(torch.tensor([template.opening(document.text)]), past_key_values=cache)
    answers, left = [], list[int]()
    for question in questions:
        given = [*left, *template.question(question)]
        written: list[int] = []
        while len(written) < answer_tokens and (not written or written[-1] != tokenizer.eos_token_id):
            logits = model(torch.tensor([given]), past_key_values=cache).logits
            written.append(int(logits[0, -1].argmax()))
            given = written[-1:]
        answers.append(tokenizer.decode(written, skip_special_tokens=True))
        between = template.next_turn()
        # The last token was not read yet.
        left = [written[-1], *(between[1:] if written[-1] == between[0] else between)]
    return answers


@pytest.mark.parametrize("policy", [Full(), H2O(60), StreamingLLM(40), Replay(50)], ids=str)
def test_answers_are_the_models_through_its_cache(policy: CachePolicy) -> None:
    questions = ["def name_3(x):", "What is name_7?", "return x +"]
    talk = conversation(policy)
    talk.read(DOCUMENT)
    assert [said(talk, question) for question in questions] == by_hand(policy, DOCUMENT, questions, 7)


@pytest.mark.parametrize(
    "policy", [H2O(0.25), H2O(heavy=0.125, recent=0.125), H2O(0.25, recent=0.0625)], ids=str
)
def test_a_fraction_is_one_of_the_document(policy: CachePolicy) -> None:
    talk = conversation(policy)
    talk.read(DOCUMENT)
    kept = policy.split(talk.cost.read_tokens).total
    for question in ("def name_1", "and more"):
        said(talk, question)
        assert talk.cache is not None
        assert (talk.cache.kept_positions(0) >= 0).sum(-1).unique().tolist() == [kept]
    cost = talk.cost
    assert 0 < cost.cache_bytes < cost.full_bytes / 3
    assert cost.read_seconds > 0 and cost.written_tokens == 7 and cost.tokens_a_second > 0


@pytest.mark.parametrize("name", [name for name, kind in POLICIES.items() if kind.bounded])
def test_a_fraction_too_small_for_sinks_is_kept_all_the_same(name: str) -> None:
    talk = conversation(make_policy(name, 0.02))
    for _ in ("as it is read", "from the next question on"):
        talk.read(DOCUMENT)
        said(talk, "def name_1")
        assert talk.cache is not None
        kept = [(talk.cache.kept_positions(layer) >= 0).double().sum(-1).mean() for layer in range(4)]
        assert sum(kept) / 4 == talk.cost.read_tokens // 50 < 4
        talk = conversation(make_policy(name, 0.5))
        talk.read(DOCUMENT)
        talk.change_budget(0.02)


def test_a_full_cache_is_as_large_as_a_full_cache() -> None:
    talk = conversation(Full())
    talk.read(DOCUMENT)
    cache = DynamicCache()
    talk.model(torch.zeros(1, talk.cost.read_tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    keys_and_values = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert talk.cost.full_bytes == keys_and_values


def test_a_stopped_answer_stays_as_far_as_it_came() -> None:
    talk, stop = conversation(H2O(60), answer_tokens=200), Event()
    talk.read(DOCUMENT)
    pieces = []
    for piece in talk.ask("def name_3(x):", stop=stop):
        pieces.append(piece)
        stop.set()
    written = talk.cost.written_tokens
    assert 1 <= written < 30
    again = conversation(H2O(60), answer_tokens=written)
    again.read(DOCUMENT)
    assert said(again, "def name_3(x):") == "".join(pieces)
    assert said(talk, "And then?") == said(conversation_after(again), "And then?")[: len(said_before(talk))]


def conversation_after(talk: Conversation) -> Conversation:
    """The same conversation with room for longer answers."""
    talk.answer_tokens = 200
    return talk


def said_before(talk: Conversation) -> str:
    """The last answer of a conversation."""
    return talk.tokenizer.decode(talk._ids[-talk.cost.written_tokens :], skip_special_tokens=True)


def test_an_answer_that_nobody_waits_for_ends() -> None:
    talk = conversation(H2O(60), answer_tokens=200)
    talk.read(DOCUMENT)
    answer = talk.ask("def name_3(x):")
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert 1 <= talk.cost.written_tokens < 200
    assert said(talk, "And then?")


def tiny_chat(template: str) -> LoadedModel:
    """A random model with a chat template of TEMPLATE_NAMES; it ends with another token than Llama-3's."""
    tokenizer: Any = AutoTokenizer.from_pretrained("data/base")
    names = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.chat_template = template_text(template)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **ends)
    return LoadedModel(LlamaForCausalLM(config).eval(), tokenizer)


@contextmanager
def writing(model: Any, tokens: list[int]) -> Iterator[None]:
    """A model that writes these tokens whatever it reads, and fails where it is asked for more."""
    left = iter(tokens)

    def write(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        likely = torch.nn.functional.one_hot(torch.tensor(next(left)), logits.shape[-1])
        return likely.float().expand_as(logits)

    hook = model.lm_head.register_forward_hook(write)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("template", "end"), [("llama-3", "<|eot_id|>"), ("llama-3", "</s>"), ("llama-2", "</s>")]
)
def test_an_answer_ends_once_with_the_token_of_its_template(template: str, end: str) -> None:
    """Also where the model has another, and where the template puts a blank before its own."""
    model, tokenizer = tiny_chat(template)
    talk = Conversation(model, tokenizer, Full(), answer_tokens=20)
    talk.read(Document("a.txt", "A text."))
    answer = [*tokenizer.encode("So.", add_special_tokens=False), tokenizer.convert_tokens_to_ids(end)]
    for question in ("Why?", "And?"):
        with writing(model, answer):
            assert said(talk, question) == "So."
    turns = [
        {"role": "user", "content": f"{INSTRUCTION}\n\nA text.\n\nWhy?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"},
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert "".join(tokenizer.decode(talk._ids).split()) == "".join(f"{whole}So.{end}".split())


@contextmanager
def failing(talk: Conversation, calls: int) -> Iterator[None]:
    """A model whose last layer fails once it was called so many times."""
    left = [calls]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the device is gone")

    hook = decoder_layers(talk.model)[-1].register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("calls", [0, 3])  # in the question, in the answer
def test_after_a_failed_answer_the_document_is_read_again(calls: int) -> None:
    talk = conversation(H2O(60))
    talk.read(DOCUMENT)
    first = said(talk, "def name_3(x):")
    with failing(talk, calls), pytest.raises(RuntimeError, match="the device is gone"):
        said(talk, "And then?")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"document='code.txt': .* failed half-way: read it again"):
            talk.ask("And then?")
    assert talk.cost.cache_bytes == 0
    assert talk.document is DOCUMENT
    talk.read(talk.document)
    assert said(talk, "def name_3(x):") == first


def test_an_answer_that_cannot_be_decoded_ends_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = conversation(H2O(60))
    talk.read(DOCUMENT)
    answering = talk.ask("def name_3(x):")

    def broken(*_: Any, **__: Any) -> str:
        raise IndexError("piece id is out of range")

    monkeypatch.setattr(type(talk.tokenizer), "decode", broken)
    with pytest.raises(IndexError, match="piece id is out of range"):
        list(answering)
    assert talk.cache is None


def test_answers_are_greedy_whatever_the_model_asks_for() -> None:
    talk = conversation(H2O(60))
    talk.read(DOCUMENT)
    first = said(talk, "def name_3(x):")
    with penalised(talk.model):
        talk.read(DOCUMENT)
        assert said(talk, "def name_3(x):") == first


def test_reading_is_told_and_stops_at_the_next_layer() -> None:
    talk = conversation(H2O(0.5))
    shares: list[float] = []
    talk.read(DOCUMENT, progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == len(decoder_layers(talk.model))
    before, stop = said(talk, "def name_3"), Event()

    def once(share: float) -> None:
        stop.set()

    with pytest.raises(Stopped):
        talk.read(OTHER, H2O(0.1), progress=once, stop=stop)
    # The conversation is what it was, and the model has none of the hooks.
    assert talk.document is DOCUMENT and talk.policy == H2O(0.5)
    assert said(talk, "And?") and before
    assert not any(part._forward_hooks for layer in decoder_layers(talk.model) for part in layer.modules())


def test_a_smaller_budget_counts_from_the_next_question_on() -> None:
    talk = conversation(H2O(0.5))
    talk.read(DOCUMENT)
    said(talk, "def name_3")
    tokens, before = talk.cost.read_tokens, talk.cost.cache_bytes
    talk.change_budget(0.1)
    said(talk, "And?")
    assert talk.cache is not None and talk.cost.cache_bytes < before / 3
    assert (talk.cache.kept_positions(0) >= 0).sum(-1).unique().tolist() == [tokens // 10]
    with pytest.raises(
        EvictedError, match=rf"has kept {tokens // 10} of {tokens} tokens, .* to keep {tokens // 2}"
    ):
        talk.change_budget(0.5)
    talk.read(DOCUMENT, talk.with_budget(0.5))
    assert (talk.cache.kept_positions(0) >= 0).sum(-1).unique().tolist() == [tokens // 2]


def test_until_a_question_is_asked_a_budget_is_raised_again() -> None:
    talk, plain = conversation(H2O(0.5)), conversation(H2O(0.5))
    for each in (talk, plain):
        each.read(DOCUMENT)
    talk.change_budget(0.1)
    talk.change_budget(0.5)
    assert said(talk, "def name_3") == said(plain, "def name_3")
    assert talk.cache is not None and plain.cache is not None
    assert torch.equal(talk.cache.kept_positions(0), plain.cache.kept_positions(0))


def test_a_smaller_budget_of_heavy_and_recent_tokens_is_split_as_before() -> None:
    talk = conversation(H2O(heavy=0.1, recent=0.3))
    talk.read(DOCUMENT)
    talk.change_budget(0.2)
    said(talk, "And?")
    assert talk.cache is not None and talk.cache.policy.split(0) == talk.policy.split(talk.cost.read_tokens)
    assert talk.policy.split(1000) == (0, 50, 150)


def test_before_reading_any_budget_is_taken() -> None:
    talk = conversation(H2O(0.1))
    talk.change_budget(0.9)
    assert talk.policy == H2O(0.9)
    with pytest.raises(ValueError, match=r"budget=0\.5: the full cache has none"):
        conversation(Full()).change_budget(0.5)


def test_two_conversations_of_one_model_know_nothing_of_each_other() -> None:
    one, other = conversation(H2O(60)), conversation(H2O(60))
    one.read(DOCUMENT)
    other.read(Document("other.txt", "class Other:\n    pass\n" * 12))
    alone = conversation(H2O(60))
    alone.read(DOCUMENT)
    first = said(one, "def name_3")
    said(other, "class")
    assert [first, said(one, "And?")] == [said(alone, "def name_3"), said(alone, "And?")]


@pytest.mark.parametrize(
    ("question", "words"), [("  ", "question='  ': is empty"), ("x " * 600, "no room is left for an answer")]
)
def test_questions_that_cannot_be_answered(question: str, words: str) -> None:
    talk = conversation(H2O(60))
    with pytest.raises(ValueError, match="document=None: read one before asking"):
        talk.ask(question)
    talk.read(DOCUMENT)
    with pytest.raises(ValueError, match=words):
        talk.ask(question)
    assert said(talk, "def name_3")


def test_no_answer_passes_what_the_model_was_trained_for() -> None:
    talk = conversation(Full(), answer_tokens=10_000)
    talk.read(DOCUMENT)
    said(talk, "def name_3")
    assert len(talk._ids) <= 512


# --- longer than the context --------------------------------------------------------------------------------


def test_plans_by_hand() -> None:
    assert plan_reading(H2O(0.2), 1000, 8192, stream=False) == Plan("text", 1000)
    assert plan_reading(H2O(0.2), 8192 - 8192 // ROOM, 8192, stream=True) == Plan("text", 8192 - 8192 // ROOM)
    assert plan_reading(H2O(0.2), 100_000, None, stream=False) == Plan("text", 100_000)
    assert plan_reading(H2O(0.1), 20_000, 8192, stream=True) == Plan("cache", PIECE)
    assert plan_reading(H2O(7600), 20_000, 8192, stream=True) == Plan("cache", 592)


@pytest.mark.parametrize(
    ("policy", "stream", "words"),
    [
        (H2O(0.1), False, "has 20000 tokens, and the model was trained for 8192, .*: read it as a stream"),
        (Replay(0.1), True, "policy='replay': .* cannot read a stream; take h2o or streaming"),
        (Full(), True, "policy='full': "),
        (H2O(0.5), True, "budget=0.5: keeps 10000 tokens, .* give at most 7679"),
    ],
)
def test_plans_that_cannot_be(policy: CachePolicy, stream: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan_reading(policy, 20_000, 8192, stream)


def test_a_document_that_leaves_too_little_room_is_told_how_much_it_must_leave() -> None:
    fits = 8192 - 8192 // ROOM
    assert plan_reading(H2O(0.2), fits, 8192, stream=False) == Plan("text", fits)
    words = rf"has {fits + 1} tokens, .* for 8192, of which 512 are kept for questions and answers: read it"
    with pytest.raises(ValueError, match=words):
        plan_reading(H2O(0.2), fits + 1, 8192, stream=False)


def test_a_stream_is_read_in_pieces_and_answered() -> None:
    model, _ = chat_base()
    text = "\n".join(LONG_TEXT for _ in range(4))
    talk = conversation(StreamingLLM(200), stream=True)
    shares: list[float] = []
    talk.read(Document("long.txt", text), progress=shares.append)
    tokens = talk.cost.read_tokens
    assert tokens > 3 * 512 and len(shares) > 2 * len(decoder_layers(model))
    assert talk.cache is not None and talk.cache.positions == "cache"
    assert len(said(talk, "def name_3")) > 0
    assert talk.cache.budget_layers[0].longest_reach <= 512


@torch.no_grad()
@pytest.mark.parametrize("policy", [StreamingLLM(200), H2O(200)], ids=str)
def test_a_long_question_about_a_stream_is_read_in_pieces_too(policy: CachePolicy) -> None:
    document, question = Document("long.txt", "\n".join(LONG_TEXT for _ in range(2))), LONG_TEXT
    talk = conversation(policy, stream=True)
    talk.read(document)
    cache = BudgetCache(talk.model, policy, positions="cache")
    for ids in (talk.template.opening(document.text), talk.template.question(question)):
        assert len(ids) > 512
        for piece in torch.tensor([ids]).split(512 - 200, 1):
            logits = talk.model(piece, past_key_values=cache).logits
    written = [int(logits[0, -1].argmax())]
    while len(written) < 7:
        logits = talk.model(torch.tensor([written[-1:]]), past_key_values=cache).logits
        written.append(int(logits[0, -1].argmax()))
    assert said(talk, question) == talk.tokenizer.decode(written, skip_special_tokens=True)
    assert talk.cache is not None and talk.cache.budget_layers[0].longest_reach <= 512


def test_a_stop_in_the_middle_of_a_question_ends_it_and_the_conversation() -> None:
    talk, stop = conversation(H2O(60)), Event()
    talk.read(DOCUMENT)
    seen: list[int] = []

    def watch(*_: Any) -> None:
        seen.append(1)
        stop.set()  # while the first layer reads the question

    first, *_, last = decoder_layers(talk.model)
    handles = [first.register_forward_hook(watch), last.register_forward_hook(lambda *_: seen.append(9))]
    try:
        with pytest.raises(Stopped, match="in the middle of the question: read the document again"):
            said(talk, "def name_3(x):", stop=stop)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [1], "no further layer"
    with pytest.raises(ValueError, match="failed half-way: read it again"):
        talk.ask("And?")
    talk.read(DOCUMENT)
    assert said(talk, "def name_3(x):") == by_hand(H2O(60), DOCUMENT, ["def name_3(x):"], 7)[0]


def test_it_stops_soon() -> None:
    # Not a measurement: an answer of a thousand tokens would take many seconds.
    talk, stop = conversation(H2O(60), answer_tokens=400), Event()
    talk.read(DOCUMENT)
    begin = time.perf_counter()
    for _ in talk.ask("def name_3(x):", stop=stop):
        stop.set()
    assert time.perf_counter() - begin < 60 and talk.cost.written_tokens < 50
