"""Where the notebooks and what they read lie, and where results and runs go: a checkout, or elsewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

INDEX = Path("notebooks/experiments.yaml")

RESULTS = "SINKLORA_RESULTS"  # the environment's word on where a notebook's results go


@dataclass(frozen=True)
class Places:
    """`sources`: the folder with `notebooks`, `configs` and `data`, which is only read and in which notebooks
    run; `results`, `runs`: what is written. All are absolute.
    """

    sources: Path
    results: Path
    runs: Path

    @property
    def is_usual(self) -> bool:
        """Whether results lie in the checkout, where its index and texts are made of them."""
        return self.results == self.sources / "results" and is_checkout(self.sources)

    @property
    def notebooks(self) -> Path:
        """The folder of the notebooks."""
        return self.sources / "notebooks"

    def executed(self, profile: str) -> Path:
        """The folder of a profile's executed notebooks."""
        return self.results / profile / "notebooks"

    @property
    def parameters(self) -> dict[str, str]:
        """What a notebook has to be told: where runs are, unless that is where it looks anyway."""
        return {} if self.runs == self.sources / "runs" else {"runs": str(self.runs)}

    @contextmanager
    def told(self) -> Iterator[None]:
        """The environment names the results to the processes that begin meanwhile."""
        before = os.environ.get(RESULTS)
        os.environ[RESULTS] = str(self.results)
        try:
            yield
        finally:
            os.environ.pop(RESULTS)
            if before is not None:
                os.environ[RESULTS] = before


def find_places(results: Path | None = None, runs: Path | None = None) -> Places:
    """The places of this process: those given, else `results` and `runs` in the checkout or, without, here.

    Raises FileNotFoundError where there are no notebooks, ValueError for a folder that cannot be written.
    """
    sources = find_sources()
    home = home_of(sources)
    results = home / "results" if results is None else results.absolute()
    runs = home / "runs" if runs is None else runs.absolute()
    for name, folder in (("results", results), ("runs", runs)):
        _check_writable(name, folder)
    return Places(sources, results, runs)


def find_sources() -> Path:
    """The folder with `notebooks`: the checkout that this is inside of, else the package's own, else what
    was installed with it. Raises FileNotFoundError where there is none.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (Path.cwd(), *Path.cwd().parents, package):
        if is_checkout(folder):
            return folder
    for folder in _installed(package):
        if (folder / INDEX).is_file():
            return folder
    raise FileNotFoundError(
        f"{INDEX}: not there; run this in a clone of the repository, or install sinklora from a wheel of it"
    )


def _installed(package: Path) -> Iterator[Path]:
    """Where a wheel's notebooks may lie: where its record says, or beside the package (`pip --target`)."""
    try:
        files = distribution("sinklora").files or ()
    except PackageNotFoundError:
        files = ()
    for file in files:
        if file.as_posix().endswith(f"share/sinklora/{INDEX}"):
            yield Path(str(file.locate())).resolve().parents[1]
    yield package / "share" / "sinklora"


def home_of(sources: Path) -> Path:
    """Where results and runs lie unless somebody says otherwise: in the checkout, or here without one."""
    return sources if is_checkout(sources) else Path.cwd()


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the root of a clone."""
    return (folder / "pyproject.toml").is_file() and (folder / INDEX).is_file()


def _check_writable(name: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name}={str(folder)!r}: cannot be made ({error.strerror}); give --{name} another folder"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name}={str(folder)!r}: cannot be written; give --{name} another folder")
