"""All figures of the committed results on one page, each with its caption and verdict."""

from collections.abc import Iterator, Mapping, Sequence

from sinklora.reproduction.report.pages import Output, Page, described_record, one_line

HEAD = """# Gallery

Every figure of the committed results, below the table or figure of the paper that it belongs to, with the
verdict that its notebook computed. Captions, verdicts and pictures are those of the results.
"""


def gallery_text(pages: Mapping[str, Sequence[Page]]) -> str:
    """The gallery of the profiles' pages, in Markdown, its links relative to `results`; each figure once."""
    parts = [HEAD]
    for profile, profile_pages in pages.items():
        shown: set[str] = set()
        for page in profile_pages:
            figures = [output for output in page.outputs if output.is_figure and output.name not in shown]
            shown.update(figure.name for figure in figures)
            if figures:
                parts.append(f"## {page.title}" + ("" if profile == "full" else f", profile `{profile}`"))
            for figure in figures:
                parts += _figure(figure, profile, page)
    return "\n\n".join(parts) + "\n"


def _figure(figure: Output, profile: str, page: Page) -> Iterator[str]:
    verdict = one_line(figure.record["verdict"])
    yield f"### {figure.name}"
    yield figure.caption
    yield f"![{figure.name}]({profile}/figures/{figure.name}.png)"
    if verdict:
        yield f"**Verdict:** {verdict}"
    yield (
        f"<sub>[claims and tables]({profile}/pages/{page.slug}.md), [to print]({profile}/{figure.file}), "
        f"{described_record(figure.record)}</sub>"
    )
