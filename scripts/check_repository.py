"""What linters of code do not see: pins, licence, notebooks, names of modules, machine paths (`make lint`).

Prints every fault on a line of its own and ends with 1 where there is one. `git` says which files there are.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Not gpu, which is compiled against the torch that is there.
PINNED_EXTRAS = ("notebooks", "eval", "real", "chat", "workflow", "docs", "dev")

TEXT = {
    ".py",
    ".pyi",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".cfg",
    ".cff",
    ".ipynb",
    ".json",
    ".csv",
    ".tex",
    "",
}

# Where text says on whose machine it was written: absolute paths below these roots, and home folders.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}/-])/(?:home|root|tmp|work|Users|mnt|opt|scratch)/[\w.-]+"
    r"|(?:index-url|find-links)[ =]+\S*/\S*"  # nor on whose package index it relied
)

UNSAFE = (".pkl", ".pickle", ".pt", ".pth", ".bin")  # can run code when loaded

LARGEST = 12 * 2**20  # bytes

# Shows what MACHINE_PATH finds.
EXAMPLES_OF_PATHS = "tests/test_check_repository.py"


def tracked_files(root: Path) -> list[Path]:
    """Every file that is, or would be, in the repository."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [root / name for name in names if (root / name).is_file()]


def pins(root: Path) -> Iterator[str]:
    """Dependencies have a lower bound only; constraints.txt pins each above it, for every machine."""
    project = _project(root)
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(name): Version(version) for name, version in pairs}
    optional = project["optional-dependencies"]
    for extra, given in [("", project["dependencies"]), *optional.items()]:
        for requirement in map(Requirement, given):
            if [specifier.operator for specifier in requirement.specifier] != [">="]:
                yield f"pyproject.toml: {requirement} has more than a lower bound"
            version = pinned.get(canonicalize_name(requirement.name))
            if extra and extra not in PINNED_EXTRAS:
                continue
            if version is None or not requirement.specifier.contains(version):
                yield f"constraints.txt: pins {version} for {requirement}"
    for name, version in pinned.items():
        if version.local is not None:
            yield f"constraints.txt: {name}=={version} is found on one machine only"


def installations(root: Path) -> Iterator[str]:
    """conda and make install the same, of the Python that pyproject.toml asks for."""
    project, wanted = _project(root), ["-c constraints.txt", f"-e .[{','.join(PINNED_EXTRAS)}]"]
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    if pip != wanted:
        yield f"environment.yml: installs {pip}, expected {wanted}"
    [python] = [d for d in environment["dependencies"] if str(d).startswith("python=")]
    if not Requirement(f"python{project['requires-python']}").specifier.contains(f"{python[7:]}.9"):
        yield f"environment.yml: {python}, but pyproject.toml asks for {project['requires-python']}"
    if environment["name"] != project["name"]:
        yield f"environment.yml: name {environment['name']!r}, expected {project['name']!r}"
    if f'-c constraints.txt -e ".[{",".join(PINNED_EXTRAS)}]"' not in (root / "Makefile").read_text("utf-8"):
        yield f"Makefile: does not install {wanted}"


def licence_and_citation(root: Path) -> Iterator[str]:
    """LICENSE is Apache-2.0, and CITATION.cff has the licence and the version of the package."""
    project = _project(root)
    text = (root / "LICENSE").read_text(encoding="utf-8")
    if not ("Apache License" in text and "END OF TERMS AND CONDITIONS" in text):
        yield "LICENSE: is not the whole Apache License"
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    for name in ("license", "version"):
        if str(citation[name]) != project[name]:
            yield f"CITATION.cff: {name} {citation[name]}, in pyproject.toml {project[name]}"


def stored_notebooks(root: Path) -> Iterator[str]:
    """Notebooks are stored without outputs and define nothing."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for place in stored_results(notebook):
            yield f"{path.name}: cell {place} is stored with its output"
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                for name in definitions("".join(cell["source"])):
                    yield f"{path.name}: defines {name}, which belongs into the package"


def definitions(source: str) -> list[str]:
    """Functions and classes that a code cell defines; magics and shell lines do not count."""
    lines = ["pass" if line.startswith(("%", "!")) else line for line in source.splitlines()]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, kinds)]
    return [ast.unparse(node).splitlines()[0] for node in nodes]


def stored_results(notebook: dict[str, Any]) -> list[int]:
    """Positions of the code cells that hold outputs or an execution count."""
    cells = enumerate(notebook["cells"])
    return [i for i, c in cells if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])]


def files(root: Path) -> Iterator[str]:
    """No file is large, can run code when loaded, or names the machine that it was written on."""
    for path in tracked_files(root):
        name = path.relative_to(root).as_posix()
        if path.stat().st_size > LARGEST:
            yield f"{name}: {path.stat().st_size} bytes, above {LARGEST}"
        if name.endswith(UNSAFE):
            yield f"{name}: can run code when it is loaded; use safetensors"
        if path.suffix in TEXT and name != EXAMPLES_OF_PATHS:
            for match in MACHINE_PATH.finditer(path.read_text(encoding="utf-8")):
                yield f"{name}: names a machine: {match[0]}"


def module_names(root: Path) -> Iterator[str]:
    """No module is named like a function it holds: an import of one would hide the other."""
    for path in sorted((root / "sinklora").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == path.stem for node in tree.body):
            yield f"{path.relative_to(root).as_posix()}: named like a function it holds"


def homes(root: Path) -> Iterator[str]:
    """Names are imported from where they are defined, or from the package itself."""
    defined = {_module(root, path): path for path in (root / "sinklora").rglob("*.py")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in defined.items()}
    borrowed = {name: _imported(tree) for name, tree in trees.items() if name != "sinklora"}
    for path in tracked_files(root):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in borrowed:
                for name in {alias.name for alias in node.names} & borrowed[node.module]:
                    where = f"{path.relative_to(root).as_posix()}:{node.lineno}"
                    yield f"{where}: {name} is imported from {node.module}, which has it from elsewhere"


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module) -> set[str]:
    """What a module takes from other ones at its top, by the names that it has there."""
    taken = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in taken for alias in node.names}


def _project(root: Path) -> dict[str, Any]:
    return dict(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"])


CHECKS = (pins, installations, licence_and_citation, stored_notebooks, files, module_names, homes)


def main(root: Path) -> int:
    """Print the faults of a repository; 1 where there is one."""
    faults = [fault for check in CHECKS for fault in check(root)]
    print("\n".join(faults) or f"{len(CHECKS)} checks of the repository: nothing found")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1]))
