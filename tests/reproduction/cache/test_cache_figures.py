"""What the figures of the bounded cache show: values and intervals by budget, and which tokens are kept."""

import math

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from figure_data import darkness, error_bars, grey_of, image, unlabelled, xy
from helpers import assert_close
from sinklora.evaluate.clustered_means import mean_interval
from sinklora.evaluate.statistics import Accuracy
from sinklora.reproduction.cache.figures import budget_figure, estimates_figure, kept_text_figure
from sinklora.reproduction.cache.study import CHANCE, PERPLEXITY, QUESTIONS
from sinklora.reproduction.names import CACHES

NATS = {("h2o", 0.1): [2.0, 2.4], ("h2o", 0.5): [1.0, 1.2], ("full", 1.0): [0.5, 0.7]}
ANSWERS = {("h2o", 0.1): [1.0, 0.0, 0.0, 0.0], ("h2o", 0.5): [1.0, 1.0, 1.0, 0.0], ("full", 1.0): [1.0] * 4}
ROWS = pd.DataFrame(
    [
        {"measure": measure, "policy": policy, "budget": budget, "item": str(i), "value": value, "split": ""}
        for measure, by_policy in ((PERPLEXITY, NATS), (QUESTIONS, ANSWERS))
        for (policy, budget), values in by_policy.items()
        for i, value in enumerate(values)
    ]
)


def test_values_stand_over_their_budgets_within_their_intervals() -> None:
    perplexity, questions = budget_figure(ROWS).axes
    [(label, points)] = error_bars(perplexity)
    assert label == "H2O"
    for point, budget in zip(points, (0.1, 0.5), strict=True):
        mean, low, high = (math.exp(nats) for nats in mean_interval(NATS["h2o", budget]))
        assert_close(point, [100 * budget, low, mean, high], atol=1e-9, rtol=1e-9)
    [(_, points)] = error_bars(questions)
    for point, budget in zip(points, (0.1, 0.5), strict=True):
        right = int(sum(ANSWERS["h2o", budget]))
        low, high = Accuracy(right, 4).interval()
        assert_close(point, [100 * budget, low, right / 4, high], atol=1e-9)


def test_the_full_cache_and_chance_are_levels() -> None:
    perplexity, questions = budget_figure(ROWS).axes
    [full] = [line for line in perplexity.lines if line.get_label() == "full cache"]
    assert_close(xy(full)[1], [math.exp(0.6)] * 2, atol=1e-12)
    [chance] = [y for _, y in unlabelled(questions) if y == [CHANCE[QUESTIONS]] * 2]
    assert chance == [0.25, 0.25]
    assert [(text.get_text(), text.xy[1]) for text in questions.texts] == [("chance", 0.25)]
    assert questions.get_ylim() == (-0.03, 1.03), "the whole range of shares"
    assert perplexity.get_yscale() == "log" and perplexity.get_ylabel().startswith("perplexity")
    assert perplexity.get_title() == "perplexity (n = 2 documents)"
    assert questions.get_title() == "questions (n = 4 questions)"


def test_many_policies_stay_beside_their_budget_and_in_the_legend() -> None:
    names = [name for name in CACHES if name != "full"]
    lines = [{"measure": PERPLEXITY, "policy": "full", "budget": 1.0, "value": 1.0, "chance": math.nan}]
    lines += [lines[0] | {"policy": name, "budget": at} for name in names for at in (0.1, 0.2)]
    frame = pd.DataFrame(lines).assign(items=64, clusters=8)
    figure = estimates_figure(frame.assign(**{"value (low)": 0.9, "value (high)": 1.1}))
    [axis] = figure.axes
    low, high = axis.get_xlim()
    places = [x for _, points in error_bars(axis) for x, *_ in points]
    assert len(places) == 2 * len(names) and low < min(places) < 10 < 20 < max(places) < high
    at_ten = [x for x in places if x < math.sqrt(10 * 20)]
    assert len(at_ten) == len(names), "no budget's marks reach the next one's"
    figure.draw_without_rendering()
    [legend] = figure.legends
    shown = legend.get_window_extent()
    assert shown.x0 >= 0 and shown.x1 <= figure.bbox.x1


def test_the_more_heads_keep_a_token_the_darker_is_its_ground(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("x = 12", add_special_tokens=False)["input_ids"]
    by_layer = np.stack([np.linspace(0, 1, len(ids)), np.linspace(0, 0.5, len(ids))])
    axis, scale = kept_text_figure(tokenizer, ids, {"a policy": by_layer}).axes
    lengths = [len(tokenizer.decode([i])) for i in ids]
    assert_close(image(axis)[0, : sum(lengths)], np.repeat(by_layer.mean(0), lengths), atol=1e-9)
    assert_close(darkness(axis), 0.75 * image(axis), atol=0.01)
    assert scale.get_xlim() == (0, 1)
    assert "".join(text.get_text() for text in axis.texts) == "x = 12"
    # Dark ground, light letters.
    letters = {text.get_text(): grey_of(text.get_color()) for text in axis.texts}
    assert letters["x"] == 1 and letters["2"] == 0


def test_running_text_fills_its_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("if x:\n\treturn 12\n", add_special_tokens=False)["input_ids"]
    axis = kept_text_figure(tokenizer, ids, {"": np.ones((1, len(ids)))}, columns=8).axes[0]
    at = {text.get_position(): text.get_text() for text in axis.texts}
    lines = ["".join(at.get((column, line), "") for column in range(8)) for line in range(3)]
    assert "".join(lines) == "if x:↵    return 12↵" and [len(line) for line in lines] == [8, 8, 4]
    assert image(axis).shape == (3, 8) and image(axis).sum() == 20
