"""Committed notebooks and verdicts say what the committed claims say; one that does not is made again."""

import json
from pathlib import Path

import nbformat
import pytest

from sinklora.records.checks import read_fields
from sinklora.reproduction.report.claims import Claim, told

FOLDER = Path("results/full")
EXECUTED = sorted(path.stem for path in (FOLDER / "notebooks").glob("*.ipynb"))


def printed(name: str) -> str:
    """All text that the cells of an executed notebook have put out, blanks made one."""
    notebook = nbformat.read(FOLDER / "notebooks" / f"{name}.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text", "") for output in outputs]
    texts += [text for output in outputs for kind, text in output.get("data", {}).items() if "text" in kind]
    return " ".join(" ".join(texts).split())


@pytest.mark.parametrize("name", EXECUTED)
def test_an_executed_notebook_prints_every_claim_as_it_stands(name: str) -> None:
    path = FOLDER / "claims" / f"{name}.json"
    claims = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    said = printed(name)
    for values in claims:
        assert " ".join(told(read_fields(Claim, values)).split()) in said


@pytest.mark.parametrize("path", sorted((FOLDER / "claims").glob("*.json")), ids=lambda path: path.stem)
def test_the_verdict_of_a_table_tells_its_claims_as_they_stand(path: Path) -> None:
    for claim in [read_fields(Claim, values) for values in json.loads(path.read_text(encoding="utf-8"))]:
        record = FOLDER / "provenance" / f"{claim.table}.json"
        verdict = json.loads(record.read_text(encoding="utf-8"))["verdict"] if record.is_file() else ""
        assert told(claim) in verdict or f": {claim.sentence}" not in verdict
