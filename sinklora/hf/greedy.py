"""What greedy decoding asks of transformers' `generate`."""

from typing import Any

# Each step the likeliest token. A model's own generation config may ask for otherwise: beams, sampling, and
# penalties that make likely tokens less so, all of a document's tokens among them.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
