"""What each process of `test_over_ranks` does: `perplexity_processes.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist

from several_processes import join_group
from sinklora.evaluate.perplexity import measure_perplexity
from tiny_models import tiny_model

VOCABULARY = 64


def documents() -> list[np.ndarray]:
    """Of very unequal lengths, one with nothing to predict."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, length) for length in (200, 3, 40, 1, 90, 64)]


def main(folder: Path) -> None:
    groups = join_group(folder)
    rank = dist.get_rank()
    model = tiny_model("llama-gqa", vocab_size=VOCABULARY)
    settings = {"context": 32, "stride": 16, "progress": False}
    results = {"all": measure_perplexity(model, documents(), group=groups[3], **settings).to_dict()}
    results["one"] = measure_perplexity(model, documents()[:1], group=groups[3], **settings).to_dict()
    if rank < 2:
        results["two"] = measure_perplexity(model, documents(), group=groups[2], **settings).to_dict()
    if rank == 1:
        model.get_output_embeddings().weight.data.fill_(float("nan"))
    try:
        measure_perplexity(model, documents(), group=groups[3], **settings)
    except (FloatingPointError, RuntimeError) as error:
        results["failure"] = {"kind": type(error).__name__, "words": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
