"""Documents of all kinds, and those that cannot be read."""

import io
import zipfile
from pathlib import Path

import pytest

from sinklora.chat.documents import MOST_UNPACKED_BYTES, DocumentError, read_document

WORDS = "The bottle was not marked poison."


def pdf(text: str) -> bytes:
    """A page with one line of text, written by hand."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(data)
    return data + b"xref\n0 6\n0000000000 65535 f \n" + table + end


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def docx(text: str) -> bytes:
    formats = "http://schemas.openxmlformats.org"
    office = f"{formats}/officeDocument/2006/relationships/officeDocument"
    mime = "application/vnd.openxmlformats"
    return zipped(
        {
            "[Content_Types].xml": f"""<Types xmlns="{formats}/package/2006/content-types">
                <Default Extension="rels" ContentType="{mime}-package.relationships+xml"/>
                <Override PartName="/word/document.xml"
                    ContentType="{mime}-officedocument.wordprocessingml.document.main+xml"/></Types>""",
            "_rels/.rels": f"""<Relationships xmlns="{formats}/package/2006/relationships">
                <Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>""",
            "word/document.xml": f"""<w:document xmlns:w="{formats}/wordprocessingml/2006/main">
                <w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>""",
        }
    )


def epub(text: str) -> bytes:
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": """
                <container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
                <rootfiles><rootfile full-path="c.opf"/></rootfiles></container>""",
            "c.opf": """
                <package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
                <metadata><dc:title>T</dc:title></metadata>
                <manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>
                <spine><itemref idref="a"/></spine></package>""",
            "a.xhtml": f"<html><body><p>{text}</p></body></html>",
        }
    )


KINDS = {
    "plain.txt": WORDS.encode(),
    "mark.md": b"\xef\xbb\xbf# Title\n\n" + WORDS.encode(),
    "none": WORDS.encode(),
    "page.html": f"<html><script>evil()</script><p>{WORDS}</p></html>".encode(),
    "page.PDF": pdf(WORDS),
    "book.epub": epub(WORDS),
    "letter.docx": docx(WORDS),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_its_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name])
    document = read_document(path)
    assert WORDS in document.text and "evil" not in document.text
    assert document.name == name and not document.text.startswith("\ufeff")


def of_a_later_format(archive: bytes) -> bytes:
    """The archive with a wrong byte in its list of parts: the version that is needed to unpack the first."""
    place = archive.index(b"PK\1\2") + 6
    return archive[:place] + b"\xff" + archive[place + 1 :]


def within(archive: bytes) -> bytes:
    """An archive as a file of another one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as outer:
        outer.writestr("inner.zip", archive)
    return buffer.getvalue()


def flagged(archive: bytes) -> bytes:
    """The flag that a part needs a password set in every entry of the directory."""
    return archive.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")


def with_rights(encrypted: str) -> bytes:
    """An EPUB whose rights management names a part as encrypted."""
    told = f'<encryption><CipherReference URI="OEBPS/{encrypted}"/></encryption>'
    buffer = io.BytesIO(epub(WORDS))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("META-INF/encryption.xml", told)
    return buffer.getvalue()


def test_encrypted_fonts_do_not_hide_a_book(tmp_path: Path) -> None:
    (tmp_path / "fonts.epub").write_bytes(with_rights("font.otf"))
    assert WORDS in read_document(tmp_path / "fonts.epub").text


WRONG = {
    "latin.txt": ("caf\xe9".encode("latin-1"), "is not UTF-8 text (byte 3)"),
    "binary.txt": (b"a\0b", "is binary"),
    "empty.txt": (b" \n", "there is no text in it"),
    "empty.pdf": (pdf(""), "there is no text in it"),
    "picture.png": (b"\x89PNG", "cannot be read; give text"),
    "no.pdf": (b"not a pdf", "is damaged, or not what its name says"),
    "no.docx": (b"not a docx", "is damaged, or not what its name says"),
    "no.epub": (b"PK not", "is damaged, or not what its name says"),
    "later.docx": (of_a_later_format(docx(WORDS)), "is damaged, or not what its name says"),
    "large.txt": (b"x" * 3000, "at most"),
    "other.docx": (zipped({"readme.txt": WORDS}), "is damaged, or not what its name says"),
    "other.epub": (zipped({"readme.txt": WORDS}), "is damaged, or not what its name says"),
    "nested.docx": (within(zipped({"readme.txt": WORDS})), "is damaged, or not what its name says"),
    "locked.docx": (b"\xd0\xcf\x11\xe0" + "EncryptedPackage".encode("utf-16-le"), "is encrypted"),
    "old.docx": (b"\xd0\xcf\x11\xe0 of another program", "is damaged, or not what its name says"),
    "flagged.docx": (flagged(docx(WORDS)), "is encrypted; save it without a password"),
    "rights.epub": (with_rights("chapter.xhtml"), "is encrypted (its shop's rights management)"),
    "binary.html": (b"<p>a\0b</p>", "is binary"),
    "wide.html": ("<p>wide</p>".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
    "noise.html": (bytes(range(128, 255)) * 4, "is damaged, or not what its name says"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_said(name: str, tmp_path: Path) -> None:
    data, words = WRONG[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DocumentError) as raised:
        read_document(path, most_bytes=2000)
    assert words in str(raised.value) and repr(name) in str(raised.value)


def test_a_reader_without_its_parts_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from markitdown.converters import _pdf_converter

    path = tmp_path / "sound.pdf"
    path.write_bytes(pdf(WORDS))
    missing = (ImportError, ImportError("no pdfminer"), None)
    monkeypatch.setattr(_pdf_converter, "_dependency_exc_info", missing)
    with pytest.raises(DocumentError, match=r'needs more of markitdown: pip install "sinklora\[chat\]"'):
        read_document(path)


def test_an_encrypted_document_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "locked.pdf"
    lock = b"<</Filter/Standard/V 1/R 2/O(" + b"o" * 32 + b")/U(" + b"u" * 32 + b")/P -4>>"
    path.write_bytes(pdf(WORDS).replace(b"/Root 1 0 R>>", b"/Root 1 0 R/ID[(a)(a)]/Encrypt " + lock + b">>"))
    with pytest.raises(DocumentError, match="is encrypted; save it without a password"):
        read_document(path)


def test_an_archive_that_promises_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.epub"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.xhtml", "w") as part:
        for _ in range(MOST_UNPACKED_BYTES // 2**20 + 1):
            part.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(DocumentError, match="unpacks to 201 MiB, at most 200"):
        read_document(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.txt", tmp_path):
        with pytest.raises(DocumentError, match="no such file"):
            read_document(path)
