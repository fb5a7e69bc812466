"""Training steps of TRL's SFTTrainer with peft's LoRA and full attention; in float32, as ours beside it."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from peer_sides.subject import Answers, Setting
from sinklora.evaluate.timing import Stopwatch


def open_subject(asked: dict[str, Any], setting: Setting) -> TrlSteps:
    """LoRA on attention's projections, of the rank of ours."""
    return TrlSteps(setting)


class TrlSteps:
    """A model that each run adapts anew."""

    def __init__(self, setting: Setting) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.setting = setting
        self.model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(setting.model)

    def answers(self) -> Answers:
        """The first step's loss."""
        return Answers({}, {"loss": self._train(self.setting.prompt, 1)[0]})

    def laps(self, warm: bool = False) -> dict[str, list[float]]:
        """Seconds of a step behind the first one."""
        return {"step": self._train(32 if warm else self.setting.prompt, 2)[1]}

    def _train(self, tokens: int, steps: int) -> tuple[float, list[float]]:
        """The first step's loss, and the last one's seconds."""
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer

        watch, taken = Stopwatch("cpu"), list[list[float]]()

        class Steps(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                watch.lap()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                taken.append(list(watch.lap()))

        row = {"input_ids": self.setting.ids()[0, :tokens].tolist()}
        projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
        with tempfile.TemporaryDirectory() as folder:
            trainer = SFTTrainer(
                model=self.model,
                processing_class=self.tokenizer,
                train_dataset=Dataset.from_list([row] * steps),
                peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=projections, task_type="CAUSAL_LM"),
                callbacks=[Steps()],
                args=SFTConfig(output_dir=folder, **arguments(steps)),
            )
            trainer.train()
        self.model = trainer.model.unload()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses[0], taken[-1]


def arguments(steps: int) -> dict[str, Any]:
    """What makes its steps those of ours: nothing cut, packed, cast or computed twice."""
    return {
        "max_steps": steps,
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 1,
        "max_length": None,
        "packing": False,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "logging_first_step": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
