"""What the documentation site consists of, without building it: texts, where links lead, the reference."""

import re
from pathlib import Path

import pytest
import yaml

from site_pages import as_page, module_place, resolved, site_files, slug
from site_reference import modules, public_names, reference_pages

ROOT = Path(__file__).resolve().parents[1]

GALLERY = "results/gallery.md"


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return reference_pages(ROOT)


def navigation() -> list[str]:
    """The places of all pages that mkdocs.yml names."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [entry for part in settings["nav"] for entry in part.values()]
    return [
        place
        for entry in entries
        for place in ([entry] if isinstance(entry, str) else [p for one in entry for p in one.values()])
    ]


def test_every_text_is_in_the_navigation_once_and_nothing_else(reference: dict[str, str]) -> None:
    texts = {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")}
    others = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", GALLERY}
    assert sorted(navigation()) == sorted(texts | others | reference.keys())


def test_all_links_of_all_pages_lead_somewhere(reference: dict[str, str]) -> None:
    files = site_files(ROOT, reference.items())
    assert {"README.md", "docs/caches.md", "results/README.md", "results/full/pages/fig6.md"} < files.texts
    assert "data/README.md" in files.texts or "docs/demo.svg" in files.others
    assert {"docs/demo.svg", "results/full/figures/fig6_accuracy.png", "CITATION.cff"} < files.others
    assert all((ROOT / name).is_file() for name in files.texts | files.others)
    shown = {place.partition("#")[2] for place in linked_modules()}
    assert shown and all(f"::: {name}\n" in "".join(reference.values()) for name in shown)


def linked_modules() -> set[str]:
    """Where links to modules of the package lead in the reference."""
    links = [
        (path.relative_to(ROOT).as_posix(), link)
        for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
        for link in re.findall(r"\]\(([^)\s:]+\.py)\)", path.read_text(encoding="utf-8"))
    ]
    return {module_place(resolved(place, link)) for place, link in links}


@pytest.mark.parametrize("link", ["caches.md", "../docs/no.md", "no.png"])
def test_a_link_to_nothing_is_told(link: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("[results](docs/one.md)")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.md").write_text(f"`[x](gone.md)` [there]({link}#here)")
    with pytest.raises(FileNotFoundError, match=re.escape(f"docs/one.md: the link {link} leads to no file")):
        site_files(tmp_path)


def test_links_above_the_repository_are_told() -> None:
    assert resolved("results/full/pages/fig6.md", "../../README.md") == "results/README.md"
    with pytest.raises(ValueError, match=r"docs/a\.md: the link \.\./\.\./b leads out of the repository"):
        resolved("docs/a.md", "../../b")


def test_a_page_has_its_modules_in_the_reference_and_no_marks_of_quoted_numbers() -> None:
    text = (
        "gives <!--=facts-->2<!--=--> % ([h2o](../sinklora/cache/h2o.py), [more](caches.md#speed)), "
        "`<!--=NAME-->29.0<!--=-->`\n\n```\n[h2o](../sinklora/cache/h2o.py)\n```\n"
    )
    assert as_page("docs/a.md", text) == (
        "gives 2 % ([h2o](../reference/cache.md#sinklora.cache.h2o), [more](caches.md#speed)), "
        "`<!--=NAME-->29.0<!--=-->`\n\n```\n[h2o](../sinklora/cache/h2o.py)\n```\n"
    )
    assert module_place("sinklora/cli.py") == "" == module_place("scripts/check_wheel.py")
    assert module_place("sinklora/attention/kinds/__init__.py") == (
        "reference/attention.md#sinklora.attention.kinds"
    )


def test_headings_are_called_as_links_call_them() -> None:
    assert slug("What SF-Attn, S²-Attn and H2O are") == "what-sf-attn-s²-attn-and-h2o-are"
    assert slug("A cache with a budget, for any `generate`") == "a-cache-with-a-budget-for-any-generate"


def test_the_reference_has_every_public_name_and_every_module(reference: dict[str, str]) -> None:
    import sinklora

    names = public_names(ROOT / "sinklora")
    assert sorted([*names, "__version__"]) == sinklora.__all__
    assert all(f"::: sinklora.{name}\n" in reference["reference/sinklora.md"] for name in names)
    cache = reference["reference/cache.md"]
    assert "What a bounded key/value cache keeps" in cache
    assert cache.count("::: sinklora.cache.") == len(list(modules(ROOT / "sinklora" / "cache"))) >= 40
    assert "::: sinklora.reproduction.report.gallery\n" in reference["reference/reproduction.md"]


def test_nothing_is_loaded_from_elsewhere() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert "://" not in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "://" not in (ROOT / "docs" / "site.css").read_text(encoding="utf-8")
