"""The index of experiments, against the notebooks themselves."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from sinklora.reproduction.notebooks import plan, tidy
from sinklora.reproduction.report.experiments import Experiment, check_parameters, load_experiments

EXPERIMENTS = load_experiments()
CASES = [(e, profile) for e in EXPERIMENTS for profile in e.parameters]
# Of notebooks that can ask in a chat template.
CHATTING = [
    (e, profile)
    for e, profile in CASES
    if "chat: bool" in (Path("notebooks") / f"{e.notebook}.ipynb").read_text(encoding="utf-8")
]


def test_every_notebook_is_in_the_index_once() -> None:
    assert sorted(e.notebook for e in EXPERIMENTS) == sorted(
        p.stem for p in Path("notebooks").glob("*.ipynb")
    )


@pytest.mark.parametrize(("experiment", "profile"), CASES, ids=lambda x: getattr(x, "notebook", x))
def test_parameters_are_known_to_the_notebook(experiment: Experiment, profile: str) -> None:
    given = {"profile": profile, **experiment.parameters[profile]}
    check_parameters(Path("notebooks") / f"{experiment.notebook}.ipynb", given)


@pytest.mark.parametrize(("experiment", "profile"), CHATTING, ids=lambda x: getattr(x, "notebook", x))
def test_chat_models_are_asked_as_such(experiment: Experiment, profile: str) -> None:
    given = experiment.parameters[profile]
    assert given.get("chat", False) == ("-chat" in str(given.get("base", given.get("recipe", ""))))


def code_cells(notebook: str) -> list[str]:
    """The sources of a notebook's cells of code, that with its parameters first."""
    cells = nbformat.read(Path("notebooks") / f"{notebook}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def is_output(call: ast.Call, kinds: tuple[str, ...]) -> bool:
    """Whether a call is one of a report's methods, of any report."""
    method = call.func
    return (
        isinstance(method, ast.Attribute)
        and method.attr in kinds
        and ast.unparse(method.value).endswith("report")
    )


def written_names(source: str) -> list[str]:
    """The names under which a cell writes its outputs, as they stand there."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call.args[0]) for call in calls if is_output(call, ("table", "figure", "rows"))]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.notebook)
def test_outputs_are_those_the_notebook_writes(experiment: Experiment) -> None:
    names = [name for cell in code_cells(experiment.notebook) for name in written_names(cell)]
    assert sorted(names) == sorted(map(repr, experiment.outputs))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.notebook)
def test_a_notebook_opens_with_ten_lines_and_no_cell_is_long(experiment: Experiment) -> None:
    _, opening, *others = code_cells(experiment.notebook)
    assert len(opening.splitlines()) <= 10
    assert [cell for cell in others if len(cell.splitlines()) > 25] == []


# What comes out of a section of `explore` is computed: a cell says it.
@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e.outputs], ids=lambda e: e.notebook)
def test_a_section_begins_with_one_sentence(experiment: Experiment) -> None:
    cells = nbformat.read(Path("notebooks") / f"{experiment.notebook}.ipynb", as_version=4).cells
    sections = [c.source for c in cells[1:] if c.cell_type == "markdown" and c.source.startswith("#")]
    for section in sections:
        heading, blank, first, *rest = [*section.splitlines(), "", ""]
        assert blank == "" and rest[0] == "" and first.endswith(".") and ". " not in first, heading


MEASURING = [e for e in EXPERIMENTS if e.outputs and e.notebook > "02"]


@pytest.mark.parametrize("experiment", MEASURING, ids=lambda e: e.notebook)
def test_a_section_asks_what_is_decided_in_it(experiment: Experiment) -> None:
    """The answers are computed: they are not known when the notebook is written."""
    cells = nbformat.read(Path("notebooks") / f"{experiment.notebook}.ipynb", as_version=4).cells
    sections = [c.source for c in cells[1:] if c.cell_type == "markdown" and c.source.startswith("#")]
    firsts = [section.splitlines()[2] for section in sections]
    assert [first for first in firsts if not re.search(r"^[A-Z][^?]*\? [A-Z].*\.$", first)] == []


def undisplayed(source: str) -> list[str]:
    """Outputs of a cell that a reader does not see: neither its last expression nor given to display()."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    seen = [node.args[0] for node in calls if getattr(node.func, "id", "") == "display"]
    seen += [node.value for node in tree.body[-1:] if isinstance(node, ast.Expr)]
    writes = [node for node in calls if is_output(node, ("table", "figure"))]
    return [ast.unparse(node.args[0]) for node in writes if node not in seen]


def test_an_output_that_nobody_sees_is_found() -> None:
    assert undisplayed('report.table("a", rows)\nif x:\n    display(report.figure("b", f))') == ["'a'"]
    assert (
        undisplayed('f = report.figure("a", draw())') == undisplayed('if x:\n  report.table("a")') == ["'a'"]
    )
    assert undisplayed('rows = 1\nreal_report.table("a", rows)') == []


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.notebook)
def test_a_notebook_shows_all_that_it_writes(experiment: Experiment) -> None:
    assert [name for cell in code_cells(experiment.notebook) for name in undisplayed(cell)] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trails": 3}, "unknown parameter 'trails'"),
        ({"trials": "3"}, "trials='3'"),
        ({"trials": 3.0}, "trials=3.0"),
        ({"trials": True}, "trials=True"),
        ({"seeds": 0}, "seeds=0"),
        ({"recipe": None}, "recipe=None"),
    ],
)
def test_wrong_parameters_are_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_parameters(Path("notebooks/04_retrieval.ipynb"), given)


def test_whole_numbers_pass_for_floats() -> None:
    check_parameters(Path("notebooks/04_retrieval.ipynb"), {"recall_share": 0})


def test_unknown_profiles_and_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fulll"):
        Experiment("x", "y", {"fulll": {}}, ())
    path = tmp_path / "experiments.yaml"
    path.write_text("- {notebook: a, reproduces: b, outputs: []}\n")
    with pytest.raises(ValueError, match="'a'"):
        load_experiments(path)


def test_tidying_keeps_results_and_drops_noise(tmp_path: Path) -> None:
    outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50%|####"),
        nbformat.v4.new_output("stream", name="stdout", text="result"),
        nbformat.v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
        ),
        nbformat.v4.new_output("display_data", {"text/plain": "figure"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    tidy(tmp_path / "n.ipynb")
    [cell] = nbformat.read(tmp_path / "n.ipynb", as_version=4).cells
    assert [o.get("text") or o["data"]["text/plain"] for o in cell.outputs] == ["result", "figure"]


def test_seeds_reach_the_notebooks_that_have_them() -> None:
    chosen = {e.notebook: parameters for e, parameters in plan(EXPERIMENTS, "full", seeds=[0, 1, 2])}
    assert chosen["02_perplexity"]["seeds"] == [0, 1, 2]
    assert "seeds" not in chosen["01_attention_patterns"]
    [(only, _)] = plan(EXPERIMENTS, "full", only="02")
    assert only.notebook == "02_perplexity"
    several = [e.notebook for e, _ in plan(EXPERIMENTS, "full", only="06, 02")]
    assert several == ["02_perplexity", "06_kv_cache"]


def test_continuous_integration_runs_every_notebook_once() -> None:
    named = re.findall(r"make smoke ONLY=(\S+)", Path(".ci/run").read_text(encoding="utf-8"))
    halves = [[e.notebook for e, _ in plan(EXPERIMENTS, "smoke", only=only)] for only in named]
    assert len(halves) == 2 and sorted(halves[0] + halves[1]) == sorted(
        e.notebook for e, _ in plan(EXPERIMENTS, "smoke")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"profile": "fulll"}, "fulll"),
        ({"profile": "full", "only": "77"}, "nothing to run"),
        ({"profile": "full", "only": "02,77"}, "nothing to run for 77"),
        ({"profile": "full", "only": "02,"}, "only='02,': expected texts separated by commas"),
        ({"profile": "full", "seeds": [1, 1]}, "twice"),
        ({"profile": "full", "only": "01", "seeds": [1]}, "none of the notebooks"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(EXPERIMENTS, **arguments)  # type: ignore[arg-type]


def test_an_output_belongs_to_one_notebook(tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    entry = "- {{notebook: {0}, reproduces: b, outputs: [same], parameters: {{}}}}\n"
    path.write_text(entry.format("a") + entry.format("c"))
    with pytest.raises(ValueError, match="same"):
        load_experiments(path)
