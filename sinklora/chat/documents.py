"""Documents as text: plain text and Markdown as they are, everything else through markitdown."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from sinklora.records.damage import DAMAGED_ZIP

PLAIN = (".txt", ".text", ".md", ".markdown", ".rst", "")
CONVERTED = (".html", ".htm", ".pdf", ".epub", ".docx")
MOST_BYTES = 50 * 2**20
MOST_UNPACKED_BYTES = 200 * 2**20  # of an EPUB or DOCX, which a few bytes can promise
INSTALL = 'pip install "sinklora[chat]", or give plain text'

DAMAGED = "is damaged, or not what its name says"


class DocumentError(ValueError):
    """A document that cannot be read, and what to do about it."""


@dataclass(frozen=True)
class Document:
    """A document's name, as people know it, and its text."""

    name: str
    text: str


def read_document(path: Path, *, most_bytes: int = MOST_BYTES) -> Document:
    """The text of a file: text or Markdown in UTF-8, HTML, PDF, EPUB or DOCX, told apart by the file's name.

    Nothing is fetched, whatever the document points to. Raises DocumentError for a file that is missing,
    larger than `most_bytes`, of another kind, empty, not what its name says, or encrypted.
    """
    name, kind = path.name, path.suffix.lower()
    if not path.is_file():
        raise DocumentError(f"document={str(path)!r}: no such file")
    if kind not in PLAIN + CONVERTED:
        known = ", ".join(end for end in PLAIN + CONVERTED if end)
        raise DocumentError(f"document={name!r}: cannot be read; give text (UTF-8) or one of {known}")
    size = path.stat().st_size
    if size > most_bytes:
        raise DocumentError(
            f"document={name!r}: has {size / 2**20:.1f} MiB, at most {most_bytes / 2**20:g} are read; cut it"
        )
    text = _converted(path) if kind in CONVERTED else _plain(path)
    if not text.strip():
        raise DocumentError(
            f"document={name!r}: there is no text in it (pages that are pictures need text recognition first)"
        )
    return Document(name, text.strip())


def _plain(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"document={path.name!r}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DocumentError(f"document={path.name!r}: is binary, not text")
    return text


def _converted(path: Path) -> str:
    # The library takes what it does not know for text.
    if not _is_what_its_name_says(path):
        raise DocumentError(f"document={path.name!r}: {DAMAGED}")
    try:
        from markitdown import MarkItDown, MarkItDownException, StreamInfo
    except ImportError as error:
        raise DocumentError(
            f"document={path.name!r}: HTML, PDF, EPUB and DOCX need markitdown: {INSTALL}"
        ) from error
    # The stream and its kind alone: a name could be taken for an address that is fetched.
    reader, kind = MarkItDown(enable_plugins=False), StreamInfo(extension=path.suffix.lower())
    try:
        with path.open("rb") as stream:
            return reader.convert_stream(stream, stream_info=kind).markdown
    except MarkItDownException as error:
        raise DocumentError(f"document={path.name!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why a library could not read a file, in words."""
    told = str(error)
    if "Password" in told or "Encrypt" in told:
        return "is encrypted; save it without a password"
    if "MissingDependencyException" in told:
        return f"needs more of markitdown: {INSTALL}"
    return DAMAGED


def _is_what_its_name_says(path: Path) -> bool:
    kind = path.suffix.lower()
    if kind == ".pdf":
        with path.open("rb") as file:
            return b"%PDF-" in file.read(1024)
    if kind in (".html", ".htm"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except DAMAGED_ZIP:
        return False
    if size > MOST_UNPACKED_BYTES:
        raise DocumentError(
            f"document={path.name!r}: unpacks to {size / 2**20:.0f} MiB, at most "
            f"{MOST_UNPACKED_BYTES / 2**20:g} are read; cut it"
        )
    return True
