"""Build the wheel, install it beside this environment's other packages, and use it outside of the checkout.

    python scripts/check_wheel.py [--keep FOLDER]

What it proves: the wheel holds all that the library and its notebooks need, the commands start, a notebook is
executed, and nothing is read from the checkout. Else it ends with 1 and the output of what failed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

USE = """
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import sinklora

assert Path(sinklora.__file__).is_relative_to(Path("site").resolve()), sinklora.__file__
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, **shape))
ids = torch.randint(3, 64, (2, 24))
cache = sinklora.BudgetCache(model.eval(), sinklora.H2O(budget=0.5))
written = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False, pad_token_id=0)
assert written.shape[1] > 24 and cache.kept_positions(layer=0).shape[-1] == 12
model = sinklora.extend_context(model, 128)
model = sinklora.lora_plus(sinklora.use_pattern(model, sinklora.SF), rank=2).train()
model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
sinklora.save_adapter(model, "adapter")
print("used", sinklora.__version__)
"""

NOT_PACKED = (".*", "build", "dist", "out", "runs", "results", "*.egg-info", "__pycache__")

NOTEBOOK = ["reproduce", "--profile", "smoke", "--only", "explore", "--results", "results", "--runs", "runs"]

COMMANDS = (["--help"], ["train", "--help"], ["chat", "--help"], ["estimate", "--help"])


application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@application.command()
def check(
    keep: Annotated[Path | None, typer.Option(help="where the wheel is left; default: nowhere")] = None,
) -> None:
    """Build the wheel, install it beside this environment's other packages, and use it."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # A copy, without what earlier builds left, which would be packed again.
        source, wheels = folder / "source", folder / "wheels"
        shutil.copytree(root, source, ignore=shutil.ignore_patterns(*NOT_PACKED))
        run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source)], root)
        [wheel] = wheels.glob("sinklora-*.whl")
        run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], folder)
        # The rest of the environment comes last, so that its own sinklora, if any, is not the one in use.
        paths = f"import sys; sys.path[:0] = ['site']; sys.path.append({sysconfig.get_path('purelib')!r})\n"
        python = [sys.executable, "-I", "-c"]
        print(run([*python, paths + USE], folder), end="")
        for arguments in COMMANDS:
            call = f"sys.argv = {['sinklora', *arguments]!r}\nfrom sinklora.cli import main\nmain()"
            run([*python, paths + call], folder)
        # A kernel is another process, which finds the package by its environment.
        outside = {**os.environ, "PYTHONPATH": str(folder / "site")}
        call = f"import sys; sys.argv = {['sinklora', *NOTEBOOK]!r}\nfrom sinklora.cli import main\nmain()"
        run([sys.executable, "-c", call], folder, outside)
        executed = (folder / "results" / "smoke" / "notebooks" / "explore.ipynb").read_text(encoding="utf-8")
        if '"output_type"' not in executed or str(root) in executed:
            sys.exit("explore.ipynb: not executed, or in the checkout")
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy2(wheel, keep)


def run(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; ends the program with its output where it fails."""
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    application()
