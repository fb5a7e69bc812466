"""Pass-key retrieval: is a five-digit key, stated twice in filler, given back when asked for (paper
4.1.5)?
"""

import random
import re
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sinklora.evaluate.statistics import Accuracy
from sinklora.train.retrieval_documents import fitted_pass_key


@torch.inference_mode()
def pass_key_accuracy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    trials: int,
    seed: int,
    wording: int | None = None,
    progress: bool = True,
) -> Accuracy:
    """Exact-match accuracy over ``trials`` documents of at most ``tokens`` tokens (prompt and answer),
    greedy decoding. An answer is the first number written, all its digits.

    The key's depth goes evenly from first to last; keys, fillers and wording are drawn from ``seed``;
    ``wording`` 0 keeps to the paper's own. Raises ValueError for ``trials`` < 1 or ``tokens`` too few for
    a document.
    """
    if trials < 1:
        raise ValueError(f"trials={trials}: expected at least 1")
    if getattr(model, "training", False):
        raise ValueError("model: is in training mode, where dropout and patterns act; call model.eval()")
    rng = random.Random(f"pass key/{seed}/{tokens}")
    correct = 0

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    for trial in tqdm(range(trials), desc=f"pass keys at {tokens}", disable=not progress):
        depth = trial / max(1, trials - 1)
        document = fitted_pass_key(rng, count, tokens, depth, wording)
        prompt = tokenizer(document.prompt, return_tensors="pt").to(model.device)
        # The answer's tokens are a blank and five digits, one token each.
        written = model.generate(
            **prompt, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        answer = str(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
        number = re.match(r"\s*(\d+)", answer)  # a longer number that begins with the key is wrong
        correct += number is not None and number[1] == document.answer
    return Accuracy(correct, trials)
