"""Text of HTML pages, and pages that would stop a run."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from gptjax.config.curation import ReadPages
from gptjax.curation import extract, html_text
from gptjax.curation.page import Dropped

pytest.importorskip("resiliparse", reason="needs requirements-curation.txt")
ARTICLE = "<p>" + "The words of a long article that anyone may read. " * 20 + "</p>"
# A library of the other name, which does what pages ask for.
LIBRARY = """
import ctypes, sys, time

def extract(html):
    match html.split():
        case ["segfault"]: ctypes.string_at(0)
        case ["sleep"]: time.sleep(60)
        case ["spin"]:
            while True: pass
        case ["raise"]: raise RecursionError("too deep")
        case ["fill"]: return "x" * 2**29
        case ["surrogates"]: return "a\\ud800b \\ud83d\\ude00"
        case ["modules"]: return " ".join(sys.modules)
        case ["print"]: print("noise")
    return html
"""
FAKE = ReadPages(library="trafilatura", seconds=0.3, memory_bytes=2**28)


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    (tmp_path / "trafilatura.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "trafilatura.py"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def child_pid(extractor: extract.Extractor) -> int:
    assert extractor._process
    return extractor._process.pid


def test_main_content_is_the_page_without_menus():
    page = f"<nav><a href=/>Home</a></nav><main>{ARTICLE}</main><footer>Imprint</footer>".encode()
    with extract.Extractor(ReadPages()) as extractor:
        text = extractor.extract(page)
        assert isinstance(text, str) and text.strip() == ARTICLE[3:-5]
        assert extractor.extract(b"<title>x</title><p> \n") == Dropped("no text")
        assert extractor.extract(b"") == Dropped("no text")
    with extract.Extractor(ReadPages(main_content=False)) as extractor:
        text = extractor.extract(page)
        assert isinstance(text, str) and "Home" in text and "Imprint" in text


META = "<meta charset={}>"


@pytest.mark.parametrize(
    "text, encoding, charset",
    [
        ("naïve — “q”", "utf-8", "UTF-8"),
        ("naïve — “q”", "cp1252", "ISO-8859-1"),  # which the standard takes for windows-1252
        ("日本語", "shift_jis", "x-sjis"),
        ("\ufeffnaïve", "utf-8", "latin1"),  # a mark goes before the header
        ("\ufeffnaïve", "utf-16-le", None),
        ("\ufeffnaïve", "utf-16-be", None),
        ("naïve", "utf-16-le", "utf-16"),
        (META.format("koi8-r") + "при", "koi8-r", None),
        (META.format("koi8-r") + "naïve", "utf-8", "utf-8"),  # the header goes before <meta>
        (META.format("utf-16") + "naïve", "utf-8", None),
        (META.format("koi8-r") + "при", "koi8-r", "nonsense"),
        ("съешь же ещё этих мягких французских булок", "cp1251", None),  # detected
        ("e\u0301 ﬁ", "utf-8", "utf-8"),  # not normalized
    ],
)
def test_pages_are_decoded_in_the_order_of_the_standard(text, encoding, charset):
    assert html_text.decode(text.encode(encoding), charset) == text.removeprefix("\ufeff")


def test_bytes_outside_the_encoding_become_replacement_characters():
    assert html_text.decode(b"a\xffb\xe2\x82", "utf-8") == "a\ufffdb\ufffd"


@pytest.mark.skipif(sys.platform != "linux", reason="others do not limit memory")
def test_real_pages_that_take_too_much_are_dropped_and_the_next_is_read():
    """Nesting that takes resiliparse quadratic time, and a page of many elements."""
    with extract.Extractor(ReadPages(seconds=0.5)) as extractor:
        assert extractor.extract(b"<div>" * 200_000) == Dropped("extraction timed out")
        assert extractor.extract(ARTICLE.encode()) == ARTICLE[3:-5].strip()
    with extract.Extractor(ReadPages(seconds=20, memory_bytes=2**28)) as extractor:
        dropped = extractor.extract(b"<p>a</p>" * 1_500_000)
        assert isinstance(dropped, Dropped)
        assert dropped.reason == "extraction took too much memory"
        assert extractor.extract(ARTICLE.encode()) == ARTICLE[3:-5].strip()


@pytest.mark.parametrize(
    "page, dropped",
    [
        ("spin", Dropped("extraction timed out")),
        ("sleep", Dropped("extraction timed out", "it hangs")),
        ("segfault", Dropped("extraction crashed", "exit status -11")),
        ("raise", Dropped("extraction crashed", "RecursionError: too deep")),
        ("fill", Dropped("extraction took too much memory", "MemoryError")),
    ],
)
def test_a_page_that_ends_the_child_is_dropped_and_the_next_has_a_child_and_its_own_text(
    library, monkeypatch, page, dropped
):
    monkeypatch.setattr(extract, "HANG_FACTOR", 4)
    with extract.Extractor(FAKE) as extractor:
        first = child_pid(extractor)
        assert extractor.extract(page.encode()) == dropped
        assert not alive(first)
        assert extractor.extract(b"good") == "good"
        second = child_pid(extractor)
        assert [extractor.extract(text) for text in (b"a", b"print", b"b")] == ["a", "print", "b"]
        assert child_pid(extractor) == second  # once started, used again
        assert extractor.extract(b"surrogates") == "a\ufffdb \U0001f600"
        assert extractor.extract(page.encode()) == dropped
    assert not alive(second)


def test_a_page_that_takes_too_long_is_dropped_where_the_parent_ignores_the_signal(library):
    """As it does once libtpu is loaded: that has a timer of this signal, which would end the tests'
    own process if it were ignored and then no more."""
    code = f"""
        import signal
        from gptjax.config.curation import ReadPages
        from gptjax.curation import extract
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        with extract.Extractor({FAKE!r}) as extractor:
            print(extractor.extract(b"spin"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=paths, timeout=60)
    assert done.stdout.strip() == str(Dropped("extraction timed out"))


def test_a_child_that_something_else_kills_costs_no_page(library):
    with extract.Extractor(FAKE) as extractor:
        os.kill(child_pid(extractor), signal.SIGKILL)
        assert extractor.extract(b"good") == "good"


def test_a_page_larger_than_what_a_socket_holds_goes_to_a_child_that_does_not_read(
    library, monkeypatch
):
    monkeypatch.setattr(extract, "HANG_FACTOR", 1)
    with extract.Extractor(FAKE) as extractor:
        os.kill(child_pid(extractor), signal.SIGSTOP)
        page = b"x" * 10**7
        assert extractor.extract(page) == Dropped("extraction timed out", "it hangs")
        assert extractor.extract(page) == page.decode()


def test_an_interrupted_page_leaves_no_reply_for_the_next(library, monkeypatch):
    def interrupt(n):
        raise KeyboardInterrupt

    with extract.Extractor(FAKE) as extractor:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(extractor, "_read", interrupt)
            extractor.extract(b"first")
        assert extractor.extract(b"second") == "second"


def test_the_child_imports_little(library):
    with extract.Extractor(FAKE) as extractor:
        modules = extractor.extract(b"modules")
    assert isinstance(modules, str) and "gptjax" in modules.split()
    assert not {"jax", "numpy", "multiprocessing"} & set(modules.split())


def test_a_library_that_is_missing_or_broken_is_an_error_and_not_a_reason_to_drop(
    library, monkeypatch
):
    library.write_text("import nothing_of_that_name")
    with pytest.raises(ValueError, match="does not start .ModuleNotFoundError: .*_of_that_name"):
        extract.Extractor(FAKE).__enter__()
    monkeypatch.setattr(extract.importlib.util, "find_spec", lambda name: name != "trafilatura")
    with pytest.raises(ValueError, match="needs the package trafilatura, .*pip install"):
        extract.Extractor(FAKE).__enter__()
    monkeypatch.setattr(extract.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="resiliparse"):
        extract.Extractor(ReadPages()).__enter__()


WORKER = """
    import os, sys, time
    from gptjax.config.curation import ReadPages
    from gptjax.curation import extract
    from gptjax.runtime import worker_pool

    def begin():
        global extractor
        extractor = extract.Extractor(ReadPages(seconds=1000)).__enter__()

    def work(page):
        pids = os.getppid(), os.getpid(), extractor._process.pid
        print(extractor.extract(page), *pids, flush=True)
        extractor.extract(b"<div>" * 10**6)  # much longer than the test

    if __name__ == "__main__":
        with worker_pool.executor(1, begin, ()) as pool:
            pool.submit(work, b"<p>text").result()
"""


@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_the_child_of_a_worker_ends_with_it_however_that_ends(tmp_path, victim):
    (tmp_path / "program.py").write_text(textwrap.dedent(WORKER))
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
    )
    with program:
        try:
            assert program.stdout
            text, *pids = program.stdout.readline().split()
            parent, worker, child = map(int, pids)
            assert text == "text" and parent == program.pid
            busy = psutil.Process(child)  # a child that waits for a page would end by itself
            while busy.cpu_times().user < 1:
                time.sleep(0.05)
            os.kill(parent if victim == "parent" else worker, signal.SIGKILL)
            deadline = time.monotonic() + 30
            while (alive(child) or alive(worker)) and time.monotonic() < deadline:
                time.sleep(0.05)
            left = [pid for pid in (child, worker) if alive(pid)]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            assert left == []
        finally:
            program.kill()
