"""The paper's tables and figures in its order: what each claims, and which of its numbers stand for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sinklora.reproduction.report.published import PAPER_NUMBERS, named_items, published_text


@dataclass(frozen=True)
class PaperItem:
    """A table or figure of the paper.

    `claim`: what it is there to show, in our words. `numbers`: a phrase with a `{}` for each of `keys`, which
    are (item, row, column) of `data/paper_numbers.csv`; empty where the paper gives no number on record.
    """

    name: str
    claim: str
    numbers: str = ""
    keys: Sequence[tuple[str, str, str]] = ()

    @property
    def slug(self) -> str:
        """The name of its page: "table1", "fig1"."""
        return self.name.lower().replace(". ", "").replace(" ", "")

    def is_named_in(self, phrase: str) -> bool:
        """Whether a phrase such as "Tables 1 and 2" names it."""
        return self.name.replace("Fig.", "Figure") in named_items(phrase)

    def published(self, path: Path = PAPER_NUMBERS) -> str:
        """Its numbers in few words; empty where there are none on record."""
        return self.numbers.format(*(published_text(*key, path=path) for key in self.keys))


def _abstract(pattern: str) -> tuple[str, str, str]:
    return "Abstract", f"{pattern} share of full attention's improvement", "share"


PAPER_ITEMS = (
    PaperItem(
        "Table 1",
        "Fine-tuned with SF-Attn, a model is near full attention's perplexity on books, with S²-Attn not.",
        "share of full attention's improvement on untrained linear positions: SF-Attn {}, S²-Attn {}",
        [_abstract("SF-Attn"), _abstract("S2-Attn")],
    ),
    PaperItem(
        "Table 2",
        "The same on mathematical texts and papers; a longer context lowers perplexity.",
        "perplexity {} at 4096, {} at 8192 tokens",
        [("Table 2", "SF-Attn 7B Llama2", "4096"), ("Table 2", "SF-Attn 7B Llama2", "8192")],
    ),
    PaperItem(
        "Table 3",
        "Fine-tuned with SF-Attn, a model's perplexity falls with every longer context.",
        "perplexity {} at 2048, {} at 16,384 tokens",
        [("Table 3", "7B Llama2", "2048"), ("Table 3", "7B Llama2", "16384")],
    ),
    PaperItem(
        "Table 4",
        "The extended model names the first topic of a conversation, up to the longest ones.",
        "accuracy {} at 3k, {} at 16k tokens",
        [("Table 4", "Ours 8B Llama3", "3k"), ("Table 4", "Ours 8B Llama3", "16k")],
    ),
    PaperItem(
        "Table 5",
        "Inference with H2O takes less time than with the full cache.",
        "{} hours against {}",
        [("Table 5", "H2O", "100% KV"), ("Table 5", "Full", "100% KV")],
    ),
    PaperItem(
        "Table 6",
        "On LongBench a model fine-tuned with SF-Attn is better than LongAlpaca and than the chat model.",
        "average {}, LongAlpaca {}, chat model {}",
        [
            ("Table 6 (LongBench English)", "Ours-7B", "avg"),
            ("Table 6 (LongBench English)", "LongAlpaca-7B-16k", "avg"),
            ("Table 6 (LongBench English)", "Llama2-7B-chat", "avg"),
        ],
    ),
    PaperItem(
        "Table 7",
        "Each part of SF-Attn helps: segmentation and reassembly (S&R), sinks, and most of all both.",
        "perplexity: SF-Attn {}, S&R alone {}, sinks alone {}, S²-Attn {}",
        [
            ("Table 7", "SF-Attn", "8192"),
            ("Table 7", "S2-Attn + S&R", "8192"),
            ("Table 7", "S2-Attn + global", "8192"),
            ("Table 7", "S2-Attn", "8192"),
        ],
    ),
    PaperItem(
        "Table 8",
        "Segmentation and reassembly needs both of its steps.",
        "perplexity: both {}, none {}, up alone {}, back alone {}",
        [
            ("Table 8", "S&R", "8192"),
            ("Table 8", "S2-Attn", "8192"),
            ("Table 8", "shift up only", "8192"),
            ("Table 8", "shift back only", "8192"),
        ],
    ),
    PaperItem(
        "Table 9",
        "SF-Attn is better than fixed, stride and random patterns of its cost, at every length.",
    ),
    PaperItem(
        "Fig. 1",
        "Training with SF-Attn takes little more than half of full attention's memory and time, at nearly "
        "its perplexity.",
        "memory ÷ {}, time ÷ {}",
        [
            ("Figure 1", "training memory of full attention / SF-Attn", "ratio"),
            ("Figure 1", "training time of full attention / SF-Attn", "ratio"),
        ],
    ),
    PaperItem("Fig. 2", "SF-Attn sees short windows in all heads, and the first tokens, which are sinks."),
    PaperItem("Fig. 3", "Attention goes to the first tokens, and to few others: heavy hitters."),
    PaperItem("Fig. 4", "Segmentation and reassembly bring shifted heads back to their unshifted state."),
    PaperItem(
        "Fig. 5",
        "Pass keys come back at lengths far beyond the base model's, further than with S²-Attn.",
        "to {} tokens, LongLoRA {}",
        [
            ("Figure 5", "SinkLoRA 7B holds to", "tokens"),
            ("Figure 5", "LongLoRA 7B holds to", "tokens"),
        ],
    ),
    PaperItem(
        "Fig. 6", "With H2O accuracy stays near the full cache's down to small budgets, well above Local's."
    ),
    PaperItem("Fig. 7", "Fixed, stride and random patterns of SF-Attn's density, to compare it with."),
    PaperItem(
        "Fig. 8",
        "LongAlpaca-plus, the data of supervised fine-tuning, is a mix of four sources.",
        "Natural Questions {} %, RedPajama {} %, BookSum {} %, LongQA {} %",
        [
            ("Figure 8", source, "examples (%)")
            for source in ("Natural Questions", "RedPajama", "BookSum", "LongQA")
        ],
    ),
    PaperItem("Fig. 9", "A chat about a long document answers from all of it."),
)
