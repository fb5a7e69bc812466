"""Pass keys between the sentences of texts: where they stand, how long the documents are, what is refused."""

import re

import pytest

from sinklora.evaluate.prose_pass_keys import SENTENCE, keys_in_prose
from sinklora.train.retrieval_documents import KEY_QUESTIONS
from sinklora.train.sources import Document

TEXTS = [
    Document(name, "".join(f'"Sentence {name}{i}, which\nis new," he said.\n\n' for i in range(400)))
    for name in "ab"
]
STATED = re.compile(r"The pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\. ")


def words(text: str) -> int:
    return len(text.split())


def test_the_key_wanders_from_the_first_place_to_the_last() -> None:
    made = keys_in_prose(TEXTS, words, tokens=150, trials=5, seed=0)
    places = []
    for trial, document in enumerate(made):
        found = STATED.search(document.prompt)
        assert found is not None and found[1] == found[2] == document.answer
        text = document.prompt.replace(found[0], "").removesuffix(KEY_QUESTIONS[0])
        assert text in TEXTS[trial % 2].text  # whole sentences, as they stand there, none twice
        assert len(set(SENTENCE.findall(text))) == len(SENTENCE.findall(text)) > 10
        places.append(found.start() / len(text))
        assert document.prompt.endswith(document.question) and document.question == KEY_QUESTIONS[0]
    assert places[0] == 0 and places[-1] == 1
    for place, depth in zip(places, (0, 0.25, 0.5, 0.75, 1), strict=True):
        assert abs(place - depth) < 0.06
    assert len({document.answer for document in made}) == 5


def test_documents_are_as_long_as_they_may_be() -> None:
    for tokens in (60, 150):
        for document in keys_in_prose(TEXTS, words, tokens=tokens, trials=3, seed=1):
            assert tokens - 7 < words(document.text) <= tokens  # a sentence more has seven words


def test_a_seed_gives_the_same_and_another_other_documents() -> None:
    def made(seed: int) -> list[str]:
        return [d.prompt for d in keys_in_prose(TEXTS, words, tokens=100, trials=2, seed=seed)]

    assert made(0) == made(0) != made(1)


def test_where_a_document_ends_the_next_goes_on() -> None:
    parts = [Document(str(i), f"Only the sentence {i} is here.") for i in range(300)]
    [first, _] = keys_in_prose(parts, words, tokens=100, trials=2, seed=0)
    assert "sentence 4 is here.\n\nOnly the sentence 5" in first.prompt


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="trials=1"):
        keys_in_prose(TEXTS, words, tokens=100, trials=1, seed=0)
    with pytest.raises(ValueError, match="tokens=10: too short"):
        keys_in_prose(TEXTS, words, tokens=10, trials=2, seed=0)
    with pytest.raises(ValueError, match="all 2 together have fewer than the 1000000 characters"):
        keys_in_prose(TEXTS, words, tokens=100_000, trials=2, seed=0)
