"""What mkdocs is told beyond mkdocs.yml: which pages there are, and how their texts become pages."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # mkdocs reads this file from wherever it is started

from sinklora.reproduction.report.experiments import COMMITTED, load_experiments  # noqa: E402
from sinklora.reproduction.report.gallery import gallery_text  # noqa: E402
from sinklora.reproduction.report.index import all_pages  # noqa: E402
from sinklora.reproduction.report.pages import BEYOND  # noqa: E402
from sinklora.reproduction.report.paper_items import PAPER_ITEMS  # noqa: E402
from sinklora.reproduction.report.published import PAPER_NUMBERS  # noqa: E402
from site_pages import as_page, site_files, slug  # noqa: E402
from site_reference import reference_pages  # noqa: E402

GALLERY = "results/gallery.md"


def generated_pages(root: Path = ROOT) -> dict[str, str]:
    """Place and text of the pages that are no files of the repository."""
    experiments = load_experiments(root / "notebooks" / "experiments.yaml")
    pages = all_pages(root / "results", experiments, root / PAPER_NUMBERS)
    return {GALLERY: gallery_text(pages), **reference_pages(root)}


def result_pages(root: Path = ROOT) -> list[str]:
    """Places of the pages of the committed results, in the paper's order."""
    slugs = [*(item.slug for item in PAPER_ITEMS), BEYOND]
    places = [f"results/{profile}/pages/{slug}.md" for profile in COMMITTED for slug in slugs]
    return [place for place in places if (root / place).is_file()]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings are called as where the repository is hosted, so that links to them hold in both; the pages of
    results stand in the navigation.
    """
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    [results] = [part["Results"] for part in config.nav or [] if "Results" in part]
    results += [place for place in result_pages(ROOT) if place not in results]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The repository's texts, what they link to and what is made of results, in place of the folder docs."""
    for file in list(files.documentation_pages()) + list(files.media_files()):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    made = generated_pages()
    own = site_files(ROOT, made.items())
    styles = {str(style) for style in config.extra_css if (ROOT / str(style)).is_file()}  # some are plugins'
    for name in sorted(own.texts | own.others | styles):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """A text as a page."""
    return as_page(page.file.src_uri, markdown)
