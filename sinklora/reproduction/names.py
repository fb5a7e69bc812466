"""What the reproduction's tables call models that no pattern trained, and methods in words."""

UNTRAINED = "not fine-tuned"

LABELS = {
    "full": "full attention",
    "sf": "SF-Attn",
    "s2": "S²-Attn without the leak",
    "s2_wrapped": "leaking S²-Attn (LongLoRA's Algorithm 1)",
}

BASE = "base"
