"""The chat page in a real browser: Chromium, driven by playwright, in front of a scripted model.

SCREENSHOTS=FOLDER in the environment writes pictures there.
"""

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

pytest.importorskip("argon2", reason="needs requirements-serve.txt")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")

from gptjax.config import safety  # noqa: E402
from gptjax.server import attention_maps, policy_filter  # noqa: E402
from gptjax.server.chat_page import accounts, database, page_types  # noqa: E402
from tests import fake_generator, tiny  # noqa: E402
from tests.fake_generator import END, FakeGenerator  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
ANSWER = """Here is **bold**, `code`, $a_i^2$ and a [link](https://example.org/a).

1. one
2. two
   - nested

```python
print("<b>no HTML</b>")
```

<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>
[click](javascript:document.title='owned')"""
SIZES = {"narrow": (360, 740), "wide": (1280, 800)}


def script(request):
    return [*ANSWER.encode(), END]


@pytest.fixture
def users(tmp_path):
    with contextlib.closing(database.Database(tmp_path / "users.sqlite")) as users:
        accounts.Accounts(users).put("ann", "a long password")
        yield users


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser, port, size="wide", scheme="light"):
    """Yields the page; none of its requests went elsewhere, and nothing failed in it."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page, errors, urls = context.new_page(), [], []
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: urls.append(request.url))
    page.goto(f"http://localhost:{port}/")
    yield page
    context.close()
    assert all(url.startswith((f"http://localhost:{port}/", "data:,")) for url in urls), urls
    # Chromium notes every refused request in its console.
    assert [e for e in errors if "Failed to load resource" not in e] == []


def log_in(page, password="a long password"):
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(password)
    page.keyboard.press("Enter")


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def wait_for_end(page):
    page.locator("#send").wait_for()


def take_picture(page, name):
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")


def is_larger_than_the_window(page):
    return page.evaluate(
        """() => { const {scrollWidth: w, scrollHeight: h} = document.documentElement;
        return w > window.innerWidth || h > window.innerHeight; }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_a_conversation(browser, users, size, scheme):
    generator = FakeGenerator(script, n_ctx=4000)
    with fake_generator.serve(generator, chat=users) as (port, _):
        with open_page(browser, port, size, scheme) as page:
            log_in(page, "wrong")
            page.get_by_text("name or password is wrong").wait_for()
            take_picture(page, f"login-{size}-{scheme}")
            log_in(page)
            send(page, "Hello <i>there</i>")
            wait_for_end(page)
            answer = page.locator("#log > li.assistant")
            assert answer.locator("strong").inner_text() == "bold"
            assert answer.locator("li li").inner_text() == "nested"
            assert answer.locator("pre code").inner_text() == 'print("<b>no HTML</b>")'
            assert answer.locator("code.math").inner_text() == "a_i^2"
            assert answer.locator("a").evaluate_all("links => links.map(a => a.href)") == [
                "https://example.org/a"
            ]
            assert answer.locator("img, script, b, i").count() == 0
            assert page.locator("#log > li.user i").count() == 0 and page.title() == "Chat"
            assert not is_larger_than_the_window(page)
            take_picture(page, f"chat-{size}-{scheme}")
            if size == "narrow":
                page.get_by_role("button", name="Menu").click()
                take_picture(page, f"menu-{size}-{scheme}")
                page.keyboard.press("Escape")
                assert page.evaluate("document.activeElement.id") == "menu"
            page.get_by_role("button", name="Settings").click()
            take_picture(page, f"settings-{size}-{scheme}")
            assert not is_larger_than_the_window(page)


def test_stop_edit_regenerate_and_reload(browser, users):
    gate = threading.Semaphore(0)
    generator = FakeGenerator(lambda request: b"word " * 100, n_ctx=4000, gate=gate)
    with fake_generator.serve(generator, chat=users) as (port, _):
        with open_page(browser, port) as page:
            log_in(page)
            send(page, "first")
            gate.release(5)
            page.locator("#log > li.assistant", has_text="word").wait_for()
            page.keyboard.press("Escape")
            wait_for_end(page)
            assert page.get_by_text("Stopped.").is_visible() and not generator.live
            generator.gate = None
            generator.script = fake_generator.spell
            page.get_by_role("button", name="Write this answer again").click()
            page.locator("#log > li.assistant", has_text="seed").wait_for()
            wait_for_end(page)
            assert page.locator("#log > li").count() == 2
            page.get_by_role("button", name="Edit this message").click()
            send(page, "second")
            page.locator("#log > li.user", has_text="second").wait_for()
            wait_for_end(page)
            assert page.locator("#log > li").count() == 2
            page.reload()
            page.get_by_role("button", name="first", exact=True).click()
            page.locator("#log > li.user", has_text="second").wait_for()
            assert page.locator("#log > li").count() == 2
            page.on("dialog", lambda dialog: dialog.accept())
            page.get_by_role("button", name="Delete first").click()
            page.locator("#conversations li").wait_for(state="detached")


def test_tokens_files_export_and_one_line_of_error(browser, users, tmp_path):
    generator = FakeGenerator(n_ctx=300)
    (tmp_path / "notes.md").write_text("# some notes")
    (tmp_path / "long.txt").write_text("x" * 301)
    with fake_generator.serve(generator, chat=users) as (port, _):
        with open_page(browser, port) as page:
            log_in(page)
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("Seed").fill("7")
            page.get_by_label("Tokens with log-probabilities").check()
            page.get_by_role("button", name="Save").click()
            page.locator("#file").set_input_files([tmp_path / "notes.md"])
            page.get_by_text("notes.md (12 tokens)").wait_for()
            page.locator("#file").set_input_files([tmp_path / "long.txt"])
            page.get_by_text("long.txt has 301 tokens, and the model's context 300").wait_for()
            send(page, "what is in it?")
            wait_for_end(page)
            page.locator("#log summary").click()
            page.locator("[role=option]").first.focus()
            page.keyboard.press("ArrowRight")
            text = page.locator("#log [role=status]").inner_text()
            assert '"e"' in text and "this token" in text and "-1.594" in text  # of "seed 7"
            take_picture(page, "tokens-wide-light")
            send(page, "y" * 300)
            page.get_by_text("maximum context length is 300 tokens").wait_for()
            assert page.get_by_label("Message", exact=True).input_value() == "y" * 300
            with page.expect_download() as download:
                page.get_by_role("link", name="Export my data").click()
            whole = json.loads(Path(download.value.path()).read_text())
            (conversation,) = whole["conversations"]
            assert [m["content"] for m in conversation["messages"]] == ["what is in it?", "seed 7"]
            assert bytes(generator.requests[0].prompt) == (
                b"u:File notes.md:\n\n# some notes\n\nwhat is in it?|a:"
            )


def test_the_token_view_where_a_policy_hides_answers(browser, users):
    policy = safety.Policy(name="test", output=(safety.PersonalData(),))
    settings = page_types.Settings(token_view=True, seed=7).model_dump()
    accounts.Accounts(users).save_settings(accounts.User(1, "ann", 0), settings)
    filters = policy_filter.PolicyFilter(policy, lambda line: None)
    with fake_generator.serve(FakeGenerator(), chat=users, policy=filters) as (port, _):
        with open_page(browser, port) as page:
            log_in(page)
            page.get_by_role("button", name="Settings").click()
            box = page.get_by_label("Tokens with log-probabilities")
            assert box.is_disabled() and not box.is_checked()
            assert page.get_by_text("Not available on this server").is_visible()
            take_picture(page, "no-tokens-wide-light")
            page.get_by_role("button", name="Save").click()
            page.locator("#settings").wait_for(state="hidden")
            send(page, "x")
            page.locator("#log > li.assistant", has_text="seed 7").wait_for()
    assert accounts.Accounts(users).settings(accounts.User(1, "ann", 0)) == settings


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_attention_as_a_picture_and_as_text(browser, users, size, scheme):
    lm = tiny.make_peaked_model(n_ctx=400, n_vocab=257, n_layers=2)
    maps = attention_maps.make_maps(lm)
    generator = FakeGenerator(n_ctx=400)
    with fake_generator.serve(generator, chat=users, model={"attention": maps}) as (port, _):
        with open_page(browser, port, size, scheme) as page:
            log_in(page)
            send(page, "<b>Where</b> is it?")
            wait_for_end(page)
            page.get_by_role("button", name="Attention of this answer").click()
            page.locator("#map").wait_for()
            text = "u:<b>Where</b> is it?|a:" + page.locator("#log .body").last.inner_text()
            ids, n = list(text.encode()), len(text)
            tokens = page.locator("#map-tokens [role=option]")
            assert tokens.all_text_contents() == list(text)

            def check(layer, head, row):
                """The text is that of the model's map, and the picture is darker for more."""
                weights_TS = maps.compute(ids, layer, head).weights_TS
                most = weights_TS[row].argsort()[::-1][:5]
                rows = page.locator("#cell tbody tr").all_inner_texts()
                expected = [
                    f"{json.dumps(chr(ids[i]))} ({i})\t{100 * weights_TS[row, i]:.1f}%"
                    for i in most if weights_TS[row, i] > 0
                ]  # fmt: skip
                assert sorted(rows) == sorted(expected)
                pixels = page.evaluate(
                    """(n) => { const c = document.getElementById("map");
                    const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
                    const k = c.width / n, at = (i) => Math.floor((i + .5) * k);
                    return Array.from({length: n * n}, (_, i) =>
                        d[4 * (at(Math.floor(i / n)) * c.width + at(i % n))]); }""",
                    n,
                )
                for i in range(n):
                    for j in range(i + 1):
                        part = weights_TS[i, j] ** 0.5
                        ends = (255, 27) if scheme == "light" else (21, 232)
                        if weights_TS[i, j] > 0:
                            red = ends[0] + part * (ends[1] - ends[0])
                            assert abs(pixels[i * n + j] - red) < 2, (i, j)

            check(0, None, n - 1)
            take_picture(page, f"attention-{size}-{scheme}")
            assert not is_larger_than_the_window(page)
            page.get_by_label("Layer", exact=True).select_option("1")
            page.get_by_label("Head", exact=True).select_option("3")
            page.get_by_role("img", name="Attention of layer 1, head 3").wait_for()
            check(1, 3, n - 1)
            tokens.last.focus()
            page.keyboard.press("ArrowLeft")
            check(1, 3, n - 2)
            page.locator("#map").focus()
            page.keyboard.press("ArrowUp")
            page.locator("#map").hover(position={"x": 2, "y": 200})
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowDown")
            row = int(
                page.locator("#map-tokens [aria-selected=true]").evaluate(
                    "e => [...e.parentNode.children].indexOf(e)"
                )
            )
            check(1, 3, row)
            weight = maps.compute(ids, 1, 3).weights_TS[row, 1]
            assert page.locator("#cell p").first.inner_text() == (
                f'{json.dumps(text[row])} ({row}) looks at ":" (1): {100 * weight:.1f}%'
            )
            page.get_by_label("Layer", exact=True).select_option("0")  # its window is 3
            page.locator("#cell p", has_text="gives no weight to").wait_for()
            page.get_by_label("Layer", exact=True).select_option("1")
            page.locator("#cell p", has_text="looks at").first.wait_for()
            page.locator("#map").hover(position={"x": 2, "y": 2})
            assert page.locator("#cell p").first.inner_text() == '"u" (0) looks at "u" (0): 100.0%'
            page.keyboard.press("Escape")
            assert not page.locator("#attention").is_visible()
            assert page.evaluate("document.activeElement.textContent") == "Attention"


def test_the_keyboard_alone_and_names_for_a_screen_reader(browser, users):
    with fake_generator.serve(FakeGenerator(script, n_ctx=4000), chat=users) as (port, _):
        with open_page(browser, port, "narrow") as page:
            log_in(page)
            page.locator("#message").wait_for()
            page.keyboard.type("hello")
            page.keyboard.press("Enter")
            page.locator("#log > li.assistant").wait_for()
            wait_for_end(page)
            assert page.evaluate("document.activeElement.id") == "message"
            assert "nested" in page.locator("#announcer").inner_text()
            seen = []
            page.evaluate("document.activeElement.blur()")
            page.evaluate("window.getSelection().removeAllRanges()")
            for _ in range(25):
                page.keyboard.press("Tab")
                seen.append(page.evaluate("document.activeElement.id"))
            assert {"menu", "model", "open-settings", "log", "message", "send"} <= set(seen)
            unnamed = page.evaluate(
                """() => [...document.querySelectorAll('button, input, select, textarea, a')]
                .filter(e => !(e.ariaLabel || e.textContent.trim() || (e.labels || []).length))
                .map(e => e.outerHTML)"""
            )
            assert unnamed == []
