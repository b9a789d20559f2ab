"""Texts of files, and the PDFs that would take a machine's memory or time."""

import zlib

import pytest

from gptjax.server.chat_page import uploads
from gptjax.server.openai_errors import ApiError


def pdf(stream: bytes, extra: bytes = b"") -> bytes:
    """A PDF of one page with a compressed content stream."""
    content = zlib.compress(stream)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>>>>>",
        b"<</Filter/FlateDecode/Length %d>>stream\n%b\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    whole, offsets = b"%PDF-1.4\n", []
    for number, value in enumerate(objects, 1):
        offsets.append(len(whole))
        whole += b"%d 0 obj%b\nendobj\n" % (number, value)
    start = len(whole)
    whole += b"xref\n0 6\n0000000000 65535 f \n"
    whole += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return whole + b"trailer<</Size 6/Root 1 0 R%b>>\nstartxref\n%d\n%%%%EOF" % (extra, start)


def test_texts():
    assert uploads.read_text("a.txt", "\ufeffcaf\u00e9".encode()) == "caf\u00e9"
    assert uploads.read_text("A.MD", b"# head") == "# head"
    page = pdf(b"BT /F 12 Tf 10 100 Td (words of a page) Tj ET")
    assert uploads.read_text("a.pdf", page).strip() == "words of a page"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.exe", b"x", "is no .txt, .md or .pdf"),
        ("txt", b"x", "is no .txt, .md or .pdf"),
        ("a.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("a.txt", b"a\0b", "is not text"),
        ("a.md", b" \n", "has no text"),
        ("a.txt", b"x" * (uploads.MAX_TEXT_CHARS + 1), "more than 1,000,000 characters"),
        ("a.pdf", b"no PDF", "cannot be read as a PDF"),
        ("a.pdf", b"", "cannot be read as a PDF"),
        ("a.pdf", pdf(b""), "has no text; pages that are pictures"),
        (
            "a.pdf",
            pdf(b"", b"/Encrypt<</Filter/Standard/V 1/R 2/O(x)/U(x)/P 0>>/ID[(a)(b)]"),
            "PDF",
        ),
    ],
)
def test_files_that_are_refused(name, content, words):
    with pytest.raises(ApiError, match=words) as caught:
        uploads.read_text(name, content)
    assert caught.value.status == 400 and "\n" not in caught.value.message


def test_a_decompression_bomb():
    bomb = pdf(b"BT (x) Tj ET " * (30 << 20))  # 380 MB in 2 MB
    assert len(bomb) < uploads.MAX_FILE_BYTES
    with pytest.raises(ApiError, match="cannot be read as a PDF"):
        uploads.read_text("bomb.pdf", bomb)


def test_a_pdf_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(uploads, "PDF_S", 0.01)
    with pytest.raises(ApiError, match="takes too long"):
        uploads.read_text("slow.pdf", pdf(b""))


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\docs\\a.md", "a.md"),
        ("a\nb\u202e.txt", "ab.txt"),
        ("x" * 500 + ".pdf", "x" * 96 + ".pdf"),
        ("", "file"),
        ("/", "file"),
    ],
)
def test_names(name, clean):
    assert uploads.clean_name(name) == clean


def test_files_stand_before_the_message():
    files = [{"name": "a.txt", "text": "A\n"}, {"name": "b.md", "text": "B"}]
    assert uploads.add_to_prompt(files, "why?") == "File a.txt:\n\nA\n\nFile b.md:\n\nB\n\nwhy?"
    assert uploads.add_to_prompt([], "why?") == "why?"
    assert uploads.add_to_prompt(files[:1], "") == "File a.txt:\n\nA"
