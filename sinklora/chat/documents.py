"""Documents as text: plain text and Markdown as they are, everything else through markitdown."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sinklora.records.damage import DAMAGED_ZIP

PLAIN = (".txt", ".text", ".md", ".markdown", ".rst", "")
READERS = {  # of markitdown
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".pdf": "PdfConverter",
    ".epub": "EpubConverter",
    ".docx": "DocxConverter",
}
CONVERTED = tuple(READERS)
MOST_BYTES = 50 * 2**20
MOST_UNPACKED_BYTES = 200 * 2**20  # of an EPUB or DOCX, which a few bytes can promise
INSTALL = 'pip install "sinklora[chat]", or give plain text'

DAMAGED = "is damaged, or not what its name says"
ENCRYPTED = "is encrypted; save it without a password"
MOST_UNREADABLE = 0.02  # of a text's characters

# Office puts an encrypted document into a container of its own, whose parts have names in UTF-16.
_CONTAINER, _ENCRYPTED_PART = b"\xd0\xcf\x11\xe0", "EncryptedPackage".encode("utf-16-le")


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
    try:
        text = _converted(path) if kind in CONVERTED else _plain(path)
    except OSError as error:
        raise DocumentError(f"document={name!r}: cannot be opened ({error.strerror or error})") from error
    if text.count("\ufffd") > MOST_UNREADABLE * len(text):
        raise DocumentError(f"document={name!r}: {DAMAGED}")
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
    wrong = _what_is_wrong(path)
    if wrong:
        raise DocumentError(f"document={path.name!r}: {wrong}")
    try:
        from markitdown import MarkItDown, MarkItDownException, StreamInfo, converters
    except ImportError as error:
        raise DocumentError(
            f"document={path.name!r}: HTML, PDF, EPUB and DOCX need markitdown: {INSTALL}"
        ) from error
    # The stream and its kind alone: a name could be taken for an address that is fetched.
    kind = path.suffix.lower()
    # One reader alone: others take what it refuses for text, and unpack archives inside of archives.
    reader = MarkItDown(enable_builtins=False, enable_plugins=False)
    reader.register_converter(getattr(converters, READERS[kind])())
    try:
        with path.open("rb") as stream:
            return reader.convert_stream(stream, stream_info=StreamInfo(extension=kind)).markdown
    except MarkItDownException as error:
        raise DocumentError(f"document={path.name!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why a library could not read a file, in words."""
    told = str(error)
    if "Password" in told or "Encrypt" in told:
        return ENCRYPTED
    if "MissingDependencyException" in told:
        return f"needs more of markitdown: {INSTALL}"
    return DAMAGED


def _what_is_wrong(path: Path) -> str:
    """Why a file is not read at all, in words; "" where nothing speaks against it."""
    kind = path.suffix.lower()
    if kind == ".pdf":
        with path.open("rb") as file:
            return "" if b"%PDF-" in file.read(1024) else DAMAGED
    if kind in (".html", ".htm"):
        return "is binary, or text in UTF-16: save it as UTF-8" if b"\0" in path.read_bytes() else ""
    data = path.read_bytes()
    if data.startswith(_CONTAINER):
        return ENCRYPTED if _ENCRYPTED_PART in data else DAMAGED
    try:
        with zipfile.ZipFile(path) as archive:
            return _what_is_wrong_inside(archive)
    except DAMAGED_ZIP:
        return DAMAGED


def _what_is_wrong_inside(archive: zipfile.ZipFile) -> str:
    """The same of an EPUB or DOCX."""
    parts = archive.infolist()
    size = sum(part.file_size for part in parts)
    if size > MOST_UNPACKED_BYTES:
        limit = f"{MOST_UNPACKED_BYTES / 2**20:g}"
        return f"unpacks to {size / 2**20:.0f} MiB, at most {limit} are read; cut it"
    if any(part.flag_bits & 1 for part in parts):
        return ENCRYPTED
    if "META-INF/encryption.xml" in archive.namelist():  # fonts may be, a text may not
        named = re.findall(rb'URI="([^"]*)"', archive.read("META-INF/encryption.xml"))
        if any(name.endswith((b"html", b"htm", b"xml")) for name in named):
            return "is encrypted (its shop's rights management); take a copy without it"
    return ""
