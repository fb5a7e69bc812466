"""Single numbers of the results quoted in the sentences of other texts, such as README.md.

`docs/quoted_numbers.yaml` says where each comes from; a text holds it between `<!--=NAME-->` and `<!--=-->`,
the ends of its 95 % interval as `NAME.low` and `NAME.high`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from sinklora.records.checks import check_fields, read_fields
from sinklora.records.tables import part
from sinklora.records.yaml_files import read_mapping

NUMBERS = Path("docs/quoted_numbers.yaml")

QUOTED = re.compile(r"<!--=(\w+)(?:\.(low|high))?-->.*?<!--=-->")

BEGIN, END = "<!--=", "<!--=-->"

MISSING = "(not measured)"


@dataclass(frozen=True)
class QuotedNumber:
    """Where a number comes from and how it is written.

    `source`: a csv or a file of claims below `results`. `where`: the column's values that tell its row.
    `column`: where it stands there; what is written is `times` the number, `plus`, in the `form` of Python's
    format strings ("" for a word). Raises TypeError or ValueError naming the field.
    """

    source: str
    column: str
    where: dict[str, str | int | float] = field(default_factory=dict)
    form: str = ""
    times: float = 1.0
    plus: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def written(self, root: Path, end: str = "") -> str:
        """The number, or the `end` ("low", "high") of its interval, as the text shows it, by the results in
        `root`; "(not measured)" where they do not have it.

        Raises ValueError where several rows are meant.
        """
        path, column = root / self.source, self.column
        if end:
            column = end if path.suffix == ".json" else part(column, end)
        rows = _read(path)
        if not {column, *self.where} <= set(rows.columns):
            return MISSING
        for name, value in self.where.items():
            rows = rows[rows[name] == value]
        if len(rows) > 1:
            raise ValueError(f"where={self.where}: {len(rows)} rows of {self.source}; name one")
        values = rows[column].dropna()
        if values.empty:
            return MISSING
        value = values.iloc[0]
        return format(self.times * value + self.plus, self.form) if self.form else str(value)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    if path.suffix == ".json":
        return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
    return pd.read_csv(path)


def read_numbers(path: Path = NUMBERS) -> dict[str, QuotedNumber]:
    """The numbers by name; none where there is no such file. Raises TypeError or ValueError naming one."""
    entries = read_mapping(path, "the name of a number:") if path.is_file() else {}
    numbers = {}
    for name, values in entries.items():
        try:
            numbers[name] = read_fields(QuotedNumber, values)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {name}: {error}") from error
    return numbers


def quote_numbers(text: str, numbers: Mapping[str, QuotedNumber], root: Path) -> str:
    """Refill every `<!--=NAME-->…<!--=-->` of a text from the results.

    Raises ValueError for an unknown name, for a number without its end, and for one that begins a line, which
    Markdown would take for HTML.
    """
    names = [quoted[1] for quoted in QUOTED.finditer(text)]
    if text.count(BEGIN) != 2 * len(names):
        raise ValueError(f"text: every '{BEGIN}NAME-->' needs its own '{END}' on the same line")
    if unknown := sorted(set(names) - set(numbers)):
        raise ValueError(f"text: quotes {unknown[0]!r}, which {NUMBERS} does not have")
    if begins := re.search(rf"^\s*{BEGIN}\S*", text, re.MULTILINE):
        raise ValueError(f"text: {begins[0].strip()} begins a line; put a word before it")

    def filled(quoted: re.Match[str]) -> str:
        name, end = quoted[1], quoted[2] or ""
        place = f"{name}.{end}" if end else name
        return f"{BEGIN}{place}-->{numbers[name].written(root, end)}{END}"

    return QUOTED.sub(filled, text)
