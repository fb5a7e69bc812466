"""Exact match and F1 of an answer, as SQuAD and LongBench compute them."""

from __future__ import annotations

from collections.abc import Sequence

from sinklora.evaluate.longbench.tasks import library_metrics


def check_comparable(answers: Sequence[str], where: str) -> None:
    """ValueError, saying `where`, for a right answer such as "A", of which case, punctuation, articles and
    blanks leave nothing: no answer at all would count as right.
    """
    for answer in answers:
        if not library_metrics().normalize_answer(answer):
            raise ValueError(
                f"{where}: of the answer {answer!r} nothing is left to compare, as case, punctuation, "
                "articles and blanks do not count; write it out"
            )


def exact_match(written: str, answers: Sequence[str]) -> bool:
    """Whether a text is one of the right answers; case, punctuation, articles and blanks do not count.

    Raises ImportError naming the extra where lm-evaluation-harness is missing, here and below.
    """
    plain = library_metrics().normalize_answer
    return plain(written) in {plain(answer) for answer in answers}


def answer_f1(written: str, answers: Sequence[str]) -> float:
    """F1 (0 to 1) of the words of a text, so normalized, with those of the right answer that is nearest."""
    return max(float(library_metrics().qa_f1_score(written, answer)) for answer in answers)
