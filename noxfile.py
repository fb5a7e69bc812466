"""The wheel on every supported Python, with the oldest and the newest transformers and torch.

    nox                                   # all that there are interpreters for; the others are skipped
    nox --session "wheel-3.12(newest)"

Each session installs what the package depends on into an environment of its own, without constraints.txt, and
lets `scripts/check_wheel.py` build the wheel and use it outside of the checkout.
"""

import tomllib
from pathlib import Path

import nox

BOUNDED = ("torch", "transformers")  # whose oldest versions are tested; everything else is as new as it comes

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False


def requirements(bound: str) -> list[str]:
    """What the package depends on, as pip takes it: for "oldest", `BOUNDED` are at their lower bounds."""
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    given: list[str] = project["dependencies"]
    if bound == "newest":
        return given
    return [at_lower_bound(line) if line.partition(">=")[0] in BOUNDED else line for line in given]


def at_lower_bound(requirement: str) -> str:
    """`name>=1.2` as `name==1.2.0`, the release that the bound means."""
    name, _, version = requirement.partition(">=")
    parts = version.split(".")
    return f"{name}=={'.'.join(parts + ['0'] * (3 - len(parts)))}"


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("bound", ["oldest", "newest"], ids=["oldest", "newest"])
def wheel(session: nox.Session, bound: str) -> None:
    """Install the dependencies, build the wheel, and use it outside of the checkout."""
    session.install("--upgrade", *requirements(bound))
    session.run("python", "-m", "pip", "check")
    session.run("python", "scripts/check_wheel.py")
