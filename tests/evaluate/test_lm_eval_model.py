"""lm-evaluation-harness through a bounded cache: against its own model, and against a hand loop."""

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from helpers import assert_close
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import parse_budget
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model

BASE = "data/base"
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_length": 256}
TEXTS = [
    ("def add(first, second):\n    return", " first + second"),
    ("def add(first, second):\n    return", " second"),
    ("import numpy as", " np"),
    (
        "The pass key is 40213. Remember it. 40213 is the pass key. What is the pass key? The pass key is",
        " 40213",
    ),
]
LONG = "def add(first, second):\n    return first + second\n\n\n" * 12
# What tasks ask: nothing or blanks before, one token and many, more than its context, more than the model.
PAIRS = [
    *TEXTS,
    ("", "class Reader:\n    pass"),
    ("<s>", "x = 1"),
    ("import ", "numpy as np\nimport pandas as pd\n"),
    ("import ", "numpy"),
    ("x", " = first(second, third) + fourth(fifth, sixth) - seventh[eighth]"),
    (LONG, " = 1"),
    (LONG, " first = second + third(fourth)"),
    (LONG[:-20], "first"),
]
SHORT = 64  # tokens that the tiny model addresses


def requests(model: Any) -> list[tuple[Any, list[int], list[int]]]:
    return [((c, t), *model._encode_pair(c, t)) for c, t in TEXTS]


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def tiny() -> PreTrainedModel:
    """A random model with the base's tokenizer."""
    model = tiny_model("llama-gqa", vocab_size=4096, max_position_embeddings=SHORT)
    model.config._name_or_path = model.name_or_path = BASE
    return model


@pytest.fixture(scope="module")
def harness(tiny: PreTrainedModel) -> HFLM:
    """The harness's own model of the same weights."""
    return HFLM(pretrained=tiny, backend="causal", batch_size=3)


def through_a_cache(model: PreTrainedModel, **options: Any) -> LMEvalModel:
    return LMEvalModel(model, batch_size=3, **options)


@pytest.mark.parametrize(
    "cache", [{"kv": Full()}, {"kv": "h2o", "budget": 200}, {"kv": "local", "budget": "200"}], ids=str
)
def test_with_everything_kept_scores_are_the_harnesss_own(cache: dict[str, Any]) -> None:
    truth = HFLM(pretrained=BASE, backend="causal", **OPTIONS)
    expected = truth._loglikelihood_tokens(requests(truth), disable_tqdm=True)
    model = LMEvalModel(BASE, **cache, **OPTIONS)
    found = model._loglikelihood_tokens(requests(model), disable_tqdm=True)
    for (mine, greedy), (theirs, theirs_greedy) in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3) and greedy == theirs_greedy


def test_under_a_budget_scores_are_those_of_a_hand_loop() -> None:
    model = LMEvalModel(BASE, kv="h2o", budget=0.3, **OPTIONS)
    found = model._loglikelihood_tokens(requests(model), disable_tqdm=True)
    full = LMEvalModel(BASE, **OPTIONS)._loglikelihood_tokens(requests(model), disable_tqdm=True)
    for (mine, _), (_, context, continuation) in zip(found, requests(model), strict=True):
        cache, total = BudgetCache(model.model, H2O(0.3)), 0.0
        with torch.no_grad():
            logits = model.model(torch.tensor([context]), past_key_values=cache, use_cache=True).logits
            for token in continuation:
                total += float(logits[0, -1].log_softmax(-1)[token])
                logits = model.model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
        assert mine == pytest.approx(total, abs=1e-4)
    assert found[3][0] < full[3][0] - 1  # the number has been evicted


def test_generation_goes_through_the_cache() -> None:
    model = LMEvalModel(BASE, kv="h2o", budget=0.3, batch_size=2, **OPTIONS)
    prompts = [TEXTS[0][0], TEXTS[3][0]]
    asked = [
        Instance("generate_until", {}, (prompt, {"until": ["\n\n"], "max_gen_toks": 6}), index)
        for index, prompt in enumerate(prompts)
    ]
    written = model.generate_until(asked, disable_tqdm=True)
    network = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([model.tok_encode(prompt)])
        made = network.generate(
            ids,
            past_key_values=BudgetCache(network, H2O(0.3)),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=2,
        )
        expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]
        assert text == expected


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_choices_scored_together_are_each_scored_alone(rows: int) -> None:
    context = TEXTS[0][0]
    choices = [" first + second", " second", " x", " first * second - first"]
    model = LMEvalModel(BASE, kv="h2o", budget=0.5, batch_size=rows, **OPTIONS)
    asked: Any = [((context, choice), *model._encode_pair(context, choice)) for choice in choices]
    assert len({len(request[2]) for request in asked}) > 1
    together = model._loglikelihood_tokens(asked, disable_tqdm=True)
    for request, (score, greedy) in zip(asked, together, strict=True):
        [(alone, alone_greedy)] = model._loglikelihood_tokens([request], disable_tqdm=True)
        assert score == pytest.approx(alone, abs=1e-4) and greedy == alone_greedy


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_full_cache_is_the_harness_itself(tiny: PreTrainedModel, batch_size: int) -> None:
    theirs = HFLM(pretrained=tiny, backend="causal", batch_size=batch_size)
    ours = LMEvalModel(tiny, batch_size=batch_size)
    pairs = asked("loglikelihood", *PAIRS)
    assert ours.loglikelihood(pairs, disable_tqdm=True) == theirs.loglikelihood(pairs, disable_tqdm=True)
    texts = asked("loglikelihood_rolling", ("import numpy",), (LONG,), ("",), ("x = 1\n",))
    rolled = ours.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolled == theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolled[1] < rolled[0] < 0
    prompts = asked("generate_until", *((c or "x", {"until": ["\n\n"], "max_gen_toks": 9}) for c, _ in PAIRS))
    assert ours.generate_until(prompts, disable_tqdm=True) == theirs.generate_until(
        prompts, disable_tqdm=True
    )


@pytest.mark.parametrize(
    "cache", [{"kv": Full()}, {"kv": "h2o", "budget": 64}, {"kv": "local", "budget": "64"}], ids=str
)
def test_a_cache_that_keeps_everything_gives_the_numbers_of_the_harness(
    tiny: PreTrainedModel, harness: HFLM, cache: dict[str, Any]
) -> None:
    ours = through_a_cache(tiny, **cache)
    pairs = asked("loglikelihood", *PAIRS)
    scores, expected = (m.loglikelihood(pairs, disable_tqdm=True) for m in (ours, harness))
    assert_close([score for score, _ in scores], [score for score, _ in expected], atol=2e-4)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    texts = asked("loglikelihood_rolling", ("import numpy",), (LONG,), ("",), ("x = 1\n",))
    rolled, theirs = (m.loglikelihood_rolling(texts, disable_tqdm=True) for m in (ours, harness))
    assert_close(rolled, theirs, atol=1e-3)
    prompts = asked("generate_until", *((c or "x", {"until": ["\n\n"], "max_gen_toks": 9}) for c, _ in PAIRS))
    written, by_them = (m.generate_until(prompts, disable_tqdm=True) for m in (ours, harness))
    assert written == by_them


@pytest.mark.parametrize("length", [1, 2, SHORT - 1, SHORT, SHORT + 1])
@pytest.mark.parametrize("context", [1, 5, SHORT, SHORT + 40])
def test_every_length_is_scored_as_by_the_harness_or_refused(
    tiny: PreTrainedModel, harness: HFLM, context: int, length: int
) -> None:
    draw = torch.Generator().manual_seed(context * length)
    tokens = torch.randint(3, 4096, (context + length,), generator=draw).tolist()
    # A second, shorter continuation of the same context must not shift what the first one sees.
    request = [(None, tokens[:context], tokens[context:]), (None, tokens[:context], tokens[-1:])]
    for cache in ({}, {"kv": "local", "budget": SHORT}):
        ours = through_a_cache(tiny, **cache)
        if length > SHORT:
            with pytest.raises(ValueError, match=r"request 0: .* of 65 tokens, .*max_length=64"):
                ours._loglikelihood_tokens(request, disable_tqdm=True)
        else:
            scores = ours._loglikelihood_tokens(request, disable_tqdm=True)
            expected = harness._loglikelihood_tokens(request, disable_tqdm=True)
            assert_close([s for s, _ in scores], [s for s, _ in expected], atol=1e-3)


@pytest.mark.parametrize("cache", [{}, {"kv": "local", "budget": SHORT}], ids=["full", "local"])
@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("loglikelihood", ("import numpy", ""), "request 1 .*'import numpy'.*nothing to score"),
        ("loglikelihood", ("", ""), "request 1 .*nothing to score"),
        ("loglikelihood", ("", "<s>"), "request 1 .*nothing to score"),
        (
            "loglikelihood",
            ("x", " y" * 90),
            "request 1 .* continuation of .*, more than max_length=64",
        ),
        ("generate_until", ("x", {"max_gen_toks": SHORT}), "request 1 .*'x'.* 64 new tokens"),
        ("generate_until", ("x", {}), "request 1 .*'x'.* 256 new tokens"),
    ],
    ids=str,
)
def test_a_request_without_a_right_number_is_named(
    tiny: PreTrainedModel, cache: dict[str, Any], kind: str, arguments: tuple[Any, ...], words: str
) -> None:
    fine = TEXTS[0] if kind == "loglikelihood" else ("x", {"max_gen_toks": 3})
    with pytest.raises(ValueError, match=words):
        getattr(through_a_cache(tiny, **cache), kind)(asked(kind, fine, arguments), disable_tqdm=True)


def log_likelihood(model: PreTrainedModel, ids: list[int], continuation: int) -> float:
    """Of the last tokens, by one plain forward pass."""
    with torch.no_grad():
        likely = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(likely.gather(-1, torch.tensor(ids)[1:, None])[-continuation:].sum())


@pytest.mark.parametrize("cache", [{}, {"kv": "local", "budget": SHORT}], ids=["full", "local"])
def test_equal_tokens_divided_differently_are_scored_apart(
    tiny: PreTrainedModel, cache: dict[str, Any]
) -> None:
    ids = [5, 70, 800, 9, 1000]
    divided: Any = [(None, ids[:place], ids[place:]) for place in (1, 4, 2)]
    scores = through_a_cache(tiny, **cache)._loglikelihood_tokens(divided, disable_tqdm=True)
    assert_close([s for s, _ in scores], [log_likelihood(tiny, ids, n) for n in (4, 1, 3)], atol=1e-4)


@pytest.mark.parametrize("cache", [{}, {"kv": "local", "budget": SHORT}], ids=["full", "local"])
def test_a_tokenizer_that_begins_with_nothing(tiny: PreTrainedModel, cache: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    ours = through_a_cache(tiny, tokenizer=tokenizer, **cache)
    with pytest.raises(ValueError, match=r"request 0 .*empty context"):
        ours.loglikelihood(asked("loglikelihood", (" ", "import os")), disable_tqdm=True)
    with pytest.raises(ValueError, match="request 0: has an empty prompt"):
        ours.generate_until(asked("generate_until", ("", {"max_gen_toks": 3})), disable_tqdm=True)
    [(score, _)] = ours.loglikelihood(asked("loglikelihood", ("", "import os")), disable_tqdm=True)
    written = ours.tok_encode("import os")
    begun = [tokenizer.bos_token_id, *written]
    assert score == pytest.approx(log_likelihood(tiny, begun, len(written)), abs=1e-4)
    neither = AutoTokenizer.from_pretrained(BASE, bos_token=None, eos_token=None)
    with pytest.raises(ValueError, match=r"tokenizer: has no first .* prefix_token_id"):
        through_a_cache(tiny, tokenizer=neither, **cache)


def test_budgets_are_read_and_wrong_ones_named_before_a_model_is_loaded() -> None:
    texts = ["0.2", "20%", " 64 ", "1", "1.0", "", None, 0.2, 64]
    read = [parse_budget(text) for text in texts]
    assert read == [0.2, 0.2, 64, 1, 1.0, None, None, 0.2, 64]
    assert [type(budget) for budget in read[:5]] == [float, float, int, int, float]
    for given, words in (
        ({"kv": "h3o", "budget": 0.2}, "kv='h3o'"),
        ({"kv": "full", "budget": 0.2}, "budget=0.2"),
        ({"kv": "h2o"}, "needs a budget"),
        ({"kv": "h2o", "budget": "much"}, "budget='much'"),
        ({"kv": "h2o", "budget": "x%"}, "budget='x%'"),
        ({"kv": "h2o", "budget": "120%"}, "budget=1.2"),
        ({"kv": "h2o", "budget": "-3"}, "budget=-3"),
        ({"kv": "h2o", "budget": "0"}, "budget=0"),
        ({"kv": H2O(0.2), "budget": "0.2"}, "budget='0.2': kv=.* has its own"),
        ({"kv": "h2o", "budget": 0.2, "prefill_chunk": "few"}, "prefill_chunk='few'"),
        ({"kv": "h2o", "budget": 0.2, "positions": "here"}, "positions='here'"),
        ({"positions": "cache"}, "positions='cache': kv='full'"),
        ({"prefill_chunk": 16}, "prefill_chunk=16: kv='full' is the model's own cache"),
        ({"max_length": "long"}, "max_length='long'"),
        ({}, "pretrained='there/is/no/such/model': no model there"),
    ):
        with pytest.raises(ValueError, match=words):
            LMEvalModel("there/is/no/such/model", **given)  # type: ignore[arg-type]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize(("rope", "tokens"), [(YARN, 256), (DYNAMIC, 256), (None, 64)])
def test_a_model_addresses_what_it_was_extended_to(rope: dict[str, Any] | None, tokens: int) -> None:
    """Where its config's own length is the original one."""
    changes = {} if rope is None else {"rope_parameters": rope}
    model = tiny_model("llama-gqa", max_position_embeddings=64, **changes)
    options = {**OPTIONS, "max_length": None}
    reader = LMEvalModel(model, kv=H2O(0.5), tokenizer=AutoTokenizer.from_pretrained(BASE), **options)
    assert reader.max_length == tokens
    given = LMEvalModel(model, kv=H2O(0.5), tokenizer=AutoTokenizer.from_pretrained(BASE), **OPTIONS)
    assert given.max_length == 256


def test_numbers_arrive_as_text(tiny: PreTrainedModel) -> None:
    ours = LMEvalModel(tiny, kv="h2o", budget="50%", prefill_chunk="7", max_length="48", batch_size="2")
    assert (ours.policy, ours.prefill_chunk, ours.max_length) == (H2O(0.5), 7, 48)
    same = LMEvalModel(tiny, kv=H2O(0.5), prefill_chunk=7, max_length=48, batch_size=2)
    pairs = asked("loglikelihood", *PAIRS)
    assert ours.loglikelihood(pairs, disable_tqdm=True) == same.loglikelihood(pairs, disable_tqdm=True)


@pytest.mark.parametrize("option", [{"positions": "cache"}, {"prefill_chunk": 7}], ids=str)
def test_each_option_of_the_cache_scores_as_by_hand(tiny: PreTrainedModel, option: dict[str, Any]) -> None:
    policy = StreamingLLM(9)
    reader = LMEvalModel(tiny, kv=policy, max_length=SHORT, **option)
    context, continuation = list(range(5, 35)), [7, 8, 9]
    [(found, _)] = reader._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
    cache = BudgetCache(tiny, policy, **option)
    with torch.no_grad():
        logits = [tiny(torch.tensor([context]), past_key_values=cache).logits[0, -1]]
        logits += [tiny(torch.tensor([[t]]), past_key_values=cache).logits[0, -1] for t in continuation[:-1]]
    by_hand = sum(float(x.log_softmax(-1)[t]) for x, t in zip(logits, continuation, strict=True))
    assert found == pytest.approx(by_hand, abs=1e-5)
    without = LMEvalModel(tiny, kv=policy, max_length=SHORT)
    [(other, _)] = without._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
    assert abs(other - found) > 1e-4


def test_rolling_scores_need_a_budget_in_tokens(tiny: PreTrainedModel) -> None:
    text = [Instance("loglikelihood_rolling", {}, ("def add(first, second):\n    return first\n",), 0)]
    for fraction in (H2O(0.25), H2O(heavy=0.125, recent=0.125), H2O(0.25, recent=0.125)):
        with pytest.raises(ValueError, match=r"budget=0\.25: .* in tokens"):
            through_a_cache(tiny, kv=fraction).loglikelihood_rolling(text, disable_tqdm=True)
    by_parts = through_a_cache(tiny, kv=H2O(heavy=9, recent=9)).loglikelihood_rolling(text, disable_tqdm=True)
    assert by_parts == through_a_cache(tiny, kv=H2O(18)).loglikelihood_rolling(text, disable_tqdm=True)
    [full] = LMEvalModel(BASE, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    [kept] = LMEvalModel(BASE, kv="h2o", budget=200, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    [lost] = LMEvalModel(BASE, kv="local", budget=2, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    assert kept == pytest.approx(full, abs=1e-3) and lost < full
