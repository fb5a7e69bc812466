"""Tokenizers that put a blank before whatever they are given."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast


def words_after_blanks(scheme: str) -> Any:
    """A tokenizer like Llama-2's, whose tokens begin with their blank and which puts one before a text."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
    trainer = BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    text = "[INST] What is it? [/INST] A text.\nAnd more? No."
    tokenizer.train_from_iterator([text] * 3, trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
