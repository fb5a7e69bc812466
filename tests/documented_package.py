"""A package of chance whose docstrings are in the form of numpydoc, to make instruction data of."""

from pathlib import Path

from instruction_sources import words

DOCSTRING = '''def {name}(first, second):
    """Sums the {topic} of two arrays that are given.

    {prose}

    Parameters
    ----------
    first : array of {kind}
        Holds {meaning} and nothing else. {rest}
    second : {{'{choice}', 'none'}}, optional, default: '{choice}'
        Says how {way} is to be done.

    Returns
    -------
    total : array
        The {result} of both, and their sum. {rest}
    """
'''


def write_package(folder: Path, name: str, files: int = 24, functions: int = 14) -> Path:
    """A package to import from `folder`; no two docstrings share a run of words."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for file in range(files):
        parts = []
        for number in range(functions):
            key = f"{name}/{file}/{number}"
            parts.append(
                DOCSTRING.format(
                    name=f"{words(1, key)}_{number}",
                    topic=words(4, f"{key} topic"),
                    prose="\n\n    ".join(words(30, f"{key} prose {i}") + "." for i in range(3)),
                    kind=words(2, f"{key} kind"),
                    meaning=words(5, f"{key} meaning"),
                    rest=words(6, f"{key} rest") + ".",
                    choice=words(1, f"{key} choice"),
                    way=words(4, f"{key} way"),
                    result=words(5, f"{key} result"),
                )
            )
        (package / f"part_{file}.py").write_text("\n\n".join(parts), encoding="utf-8")
    return package
