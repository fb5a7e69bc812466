"""A model whose own generation config asks for anything but the likeliest token."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def penalised(model: PreTrainedModel) -> Iterator[None]:
    """Sampling, beams and penalties in the model's own config."""
    before = model.generation_config.to_dict()
    model.generation_config.update(
        do_sample=True, temperature=9.0, num_beams=2, repetition_penalty=9.0, no_repeat_ngram_size=1
    )
    try:
        yield
    finally:
        model.generation_config.update(**before)
