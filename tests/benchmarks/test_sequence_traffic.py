"""The table of bytes sent, as docs/distributed.md shows it."""

from pathlib import Path

from sequence_traffic import TrafficOptions, traffic_table


def test_the_table_of_the_docs_is_what_the_script_prints() -> None:
    options = TrafficOptions()
    assert traffic_table(options.tokens, options.ranks) in Path("docs/distributed.md").read_text("utf-8")
