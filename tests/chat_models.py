"""The embedded base as a chat model: with a template that its tokenizer does not have."""

from functools import cache
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.pretrained.loading import LoadedModel

TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message['role'] }}\n{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
LONG_TEXT = "\n".join(f"def name_{number}(x):\n    return x + {number}" for number in range(40))


@cache
def chat_base() -> LoadedModel:
    """Model and tokenizer; both are shared, so that no test may change them."""
    tokenizer: Any = AutoTokenizer.from_pretrained("data/base")
    tokenizer.chat_template = TEMPLATE
    return LoadedModel(AutoModelForCausalLM.from_pretrained("data/base", use_cache=True).eval(), tokenizer)
