"""Tables of the results, and the scoreboard, quoted in other texts, such as README.md."""

import re
from pathlib import Path

BEGIN, END = "<!-- table: ", "<!-- end of table -->"

QUOTED = re.compile(rf"({BEGIN}(\S+) -->\n)(.*?)({END})", re.DOTALL)

MISSING = "Not yet measured."

BEGIN_SCORES, END_SCORES = "<!-- scoreboard -->\n", "<!-- end of scoreboard -->"


def quote_tables(text: str, root: Path) -> str:
    """Refill every `<!-- table: PROFILE/NAME -->` … `<!-- end of table -->` block of a text from the
    results.

    Raises ValueError for a block without its end, and for a table of the smoke profile, which measures
    nothing.
    """
    blocks = list(QUOTED.finditer(text))
    if len(blocks) != text.count(BEGIN) or len(blocks) != text.count(END):
        raise ValueError(f"text: every '{BEGIN}PROFILE/NAME -->' needs its own '{END}' on a later line")
    if smoke := [block[2] for block in blocks if block[2].startswith("smoke/")]:
        raise ValueError(f"text: quotes {smoke[0]}; the smoke profile measures nothing")
    return QUOTED.sub(lambda block: f"{block[1]}{_table(root, block[2])}\n{block[4]}", text)


def quote_scoreboard(text: str, scores: str) -> str:
    """Refill the `<!-- scoreboard -->` … `<!-- end of scoreboard -->` block of a text, where it has one.

    Raises ValueError for a block without its end.
    """
    before, begin, rest = text.partition(BEGIN_SCORES)
    if not begin and END_SCORES not in text:
        return text
    _, end, after = rest.partition(END_SCORES)
    if not (begin and end):
        raise ValueError(f"text: '{BEGIN_SCORES.strip()}' needs its own '{END_SCORES}' on a later line")
    return f"{before}{begin}\n{scores}\n\n{end}{after}"


def _table(root: Path, quoted: str) -> str:
    profile, _, name = quoted.partition("/")
    path = root / profile / "tables" / f"{name}.md"
    return path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else MISSING
