"""The routes: log-in, who may do what, turns of a conversation, files, one's own data."""

import json
import re

import pytest

from gptjax.config import safety
from gptjax.server import access_log, request_body
from gptjax.server.chat_page import sessions, uploads
from gptjax.server.policy_filter import PolicyFilter
from tests.fake_generator import FakeGenerator, make_client

CREDENTIALS = {"name": "ann", "password": "annann12"}


def begin(client):
    return "/chat/conversations/" + client.post("/chat/conversations", json={}).json()["id"]


def answer(client, place, **body):
    """The events of an answer."""
    response = client.post(f"{place}/answer", json={"model": "tiny"} | body)
    assert response.status_code == 200, response.text
    parts = [part.removeprefix("data: ") for part in response.text.split("\n\n")]
    assert parts[-2:] == ["[DONE]", ""]
    return [json.loads(part) for part in parts[:-2]]


def read(client, place):
    return client.get(place).json()["messages"]


def contents(client, place):
    return [message["content"] for message in read(client, place)]


def error_of(response, status):
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert message and "\n" not in message
    return message


def test_without_users_there_is_no_page():
    client = make_client()
    assert client.get("/").status_code == client.post("/chat/login", json={}).status_code == 404


def test_the_page_needs_no_session_but_the_right_host(users):
    client = make_client(chat=users, local_only=True)
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "Content-Security-Policy" in response.headers
    for path in ("/", "/chat/session"):
        error_of(client.get(path, headers={"Host": "rebound.example"}), 403)
    for path in ("/..%2f..%2fetc/passwd", "/chat/../../etc/passwd", "/chat/chat.html"):
        assert client.get(path).status_code == 404


def test_log_in(users):
    client = make_client(chat=users)
    wrong = [CREDENTIALS | change for change in ({"password": "x"}, {"name": "nobody"})]
    messages = {error_of(client.post("/chat/login", json=body), 401) for body in wrong}
    assert messages == {"name or password is wrong"}  # which of the two is not shown
    response = client.post("/chat/login", json=CREDENTIALS)
    cookie = response.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie and response.headers["cache-control"] == "no-store"
    proxied = {"Origin": "https://chat.example", "Host": "chat.example"}
    assert (
        "Secure"
        in client.post("/chat/login", json=CREDENTIALS, headers=proxied).headers["set-cookie"]
    )
    error_of(client.post("/chat/login", data=CREDENTIALS), 415)  # a form of any site
    other = {"Origin": "http://evil.example"}
    error_of(client.post("/chat/login", json=CREDENTIALS, headers=other), 403)
    for _ in range(10):
        response = client.post("/chat/login", json=CREDENTIALS)
    assert "too many tries" in error_of(response, 429) and int(response.headers["Retry-After"]) > 0


PRIVATE = [
    ("GET", "/chat/session"),
    ("GET", "/chat/conversations"),
    ("GET", "/chat/conversations/x"),
    ("GET", "/chat/export"),
    ("POST", "/chat/logout"),
    ("POST", "/chat/settings"),
    ("POST", "/chat/conversations"),
    ("POST", "/chat/conversations/x/answer"),
    ("POST", "/chat/conversations/x/stop"),
    ("POST", "/chat/conversations/x/attention"),
    ("POST", "/chat/files"),
    ("DELETE", "/chat/conversations/x"),
    ("DELETE", "/chat/data"),
]


@pytest.mark.parametrize(("method", "path"), PRIVATE)
def test_every_route_needs_a_session_and_every_change_its_token(log_in, users, method, path):
    error_of(make_client(chat=users).request(method, path), 401)
    client = log_in()
    token = client.headers.pop("X-CSRF-Token")
    if method != "GET":
        error_of(client.request(method, path), 403)
        error_of(client.request(method, path, headers={"X-CSRF-Token": "0" * 64}), 403)
        evil = {"X-CSRF-Token": token, "Origin": "http://evil.example"}
        assert "another site" in error_of(client.request(method, path, headers=evil), 403)


def test_the_list_of_private_routes_is_whole(users):
    from gptjax.server.chat_page import chat_routes
    from tests.fake_generator import make_model

    routes = chat_routes.ChatRoutes(make_model(FakeGenerator()), users, None, 1.0, False)  # type: ignore[arg-type]
    paths = set()
    routes.table(lambda method, path, *_, **__: paths.add((method, path.replace("{id}", "x"))))
    assert paths == {("GET", "/"), ("POST", "/chat/login"), *PRIVATE}


def test_logging_out_ends_all_sessions(log_in):
    first, second = log_in(), log_in()
    assert first.post("/chat/logout").status_code == 200
    assert not first.cookies
    error_of(second.get("/chat/session"), 401)


def test_a_conversation(log_in):
    generator = FakeGenerator(n_ctx=200)
    lines = []
    client = log_in(generator=generator, lines=lines)
    place = begin(client)
    client.post("/chat/settings", json={"system_prompt": "sys", "seed": 7, "temperature": 0.5})
    ids, *chunks = answer(client, place, content="one")
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "seed 7"
    assert contents(client, place) == ["one", "seed 7"]
    answer(client, place, content="two")
    assert bytes(generator.requests[-1].prompt) == b"s:sys|u:one|a:seed 7|u:two|a:"
    assert generator.requests[-1].sampling.temperature == 0.5
    assert generator.requests[-1].max_tokens == 200 - len(generator.requests[-1].prompt)
    (listed,) = client.get("/chat/conversations").json()["conversations"]
    assert listed["title"] == "one" and place.endswith(listed["id"])
    line = json.loads(lines[-2])
    assert line["user"] == "ann" and line["path"].endswith("/answer") and "prompts" not in line


def test_edit_and_regenerate_replace_what_follows(log_in):
    generator = FakeGenerator(n_ctx=200)
    client = log_in(generator=generator)
    place = begin(client)
    client.post("/chat/settings", json={"seed": 7})
    for content in ("one", "two", "three"):
        answer(client, place, content=content)
    two = read(client, place)[2]["id"]
    answer(client, place, content="deux", replaces=two)
    assert contents(client, place) == ["one", "seed 7", "deux", "seed 7"]
    client.post("/chat/settings", json={"seed": 8})
    first_answer = read(client, place)[1]["id"]
    ids = answer(client, place, replaces=first_answer)[0]
    assert ids["user_message"] is None
    assert contents(client, place) == ["one", "seed 8"]
    assert bytes(generator.requests[-1].prompt) == b"u:one|a:"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"content": " "}, 400, "the message is empty"),
        ({"replaces": 999}, 404, "no such message"),
        ({"content": "x", "replaces": -1}, 404, "no such message"),
        ({"content": "x" * 65}, 400, "maximum context length is 64 tokens"),
        ({"content": "x", "files": [{"name": "a.txt", "text": "y" * 60}]}, 400, "maximum context"),
        ({"content": "refuse"}, 400, "does not take this conversation"),
        ({"content": "x", "model": "other"}, 404, "does not exist"),
        ({"content": "x", "role": "system"}, 400, "Unrecognized request argument"),
        ({"content": "x", "files": [{"name": "a", "text": "b"}] * 11}, 400, "files"),
        ({"content": 1}, 400, "give a text of up to 1,000,000"),
    ],
)
def test_turns_that_are_refused_change_nothing(log_in, body, status, words):
    client = log_in()
    place = begin(client)
    answer(client, place, content="one")
    before = read(client, place)
    response = client.post(f"{place}/answer", json={"model": "tiny"} | body)
    assert words in error_of(response, status)
    assert read(client, place) == before
    answer(client, place, replaces=before[0]["id"], content="two")  # and it is not taken for busy


def test_an_answer_is_written_again_only_without_content(log_in):
    client = log_in()
    place = begin(client)
    answer(client, place, content="one")
    reply = read(client, place)[1]["id"]
    response = client.post(
        f"{place}/answer", json={"model": "tiny", "content": "x", "replaces": reply}
    )
    assert "give no content" in error_of(response, 400)


def test_files_of_earlier_messages_are_read_again(log_in):
    generator = FakeGenerator(n_ctx=200)
    client = log_in(generator=generator)
    place = begin(client)
    answer(client, place, content="one", files=[{"name": "a.txt", "text": "A"}])
    answer(client, place, content="two")
    assert b"u:File a.txt:\n\nA\n\none|" in bytes(generator.requests[-1].prompt)


def test_a_full_queue_stores_nothing(log_in):
    client = log_in(generator=FakeGenerator(max_live=0))
    place = begin(client)
    response = client.post(f"{place}/answer", json={"model": "tiny", "content": "x"})
    assert "queue" in error_of(response, 503) and read(client, place) == []


def test_halves_of_surrogate_pairs_are_stored_as_text(log_in):
    client = log_in()
    place = begin(client)
    body = '{"model": "tiny", "content": "a\\ud800", "files": []}'
    response = client.post(
        f"{place}/answer", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200 and contents(client, place)[0] == "a\ufffd"


def test_another_users_conversation_is_not_found(log_in):
    ann, bob = log_in("ann"), log_in("bob")
    place = begin(ann)
    answer(ann, place, content="secret")
    before = read(ann, place)
    message = before[0]["id"]
    tries = [
        bob.get(place),
        bob.delete(place),
        bob.post(f"{place}/stop", json={}),
        bob.post(f"{place}/answer", json={"model": "tiny", "content": "x"}),
        bob.post(f"{place}/answer", json={"model": "tiny", "content": "x", "replaces": message}),
    ]
    missing = bob.get("/chat/conversations/" + "x" * 16)
    assert {response.status_code for response in tries} == {404}
    assert {response.text for response in tries} == {missing.text}
    own = begin(bob)
    response = bob.post(
        f"{own}/answer", json={"model": "tiny", "content": "x", "replaces": message}
    )
    assert response.status_code == 404
    assert bob.post(f"{own}/stop", json={}).status_code == 200  # of nothing
    assert bob.delete("/chat/data").status_code == 200
    assert read(ann, place) == before and "secret" not in bob.get("/chat/export").text


def test_the_token_view_is_stored_with_the_answer(log_in):
    client = log_in()
    place = begin(client)
    client.post("/chat/settings", json={"token_view": True, "seed": 7})
    chunks = answer(client, place, content="x")[1:]
    streamed = [t for c in chunks for t in c["choices"][0]["logprobs"]["content"]]
    tokens = read(client, place)[1]["tokens"]
    assert tokens == streamed and "".join(t["token"] for t in tokens) == "seed 7"
    assert len(tokens[0]["top_logprobs"]) == 5


def test_settings(log_in, users):
    client = log_in()
    default = client.get("/chat/session").json()["settings"]
    for body, words in [
        ({"temperature": 3}, "temperature is 3"),
        ({"top_p": 0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"seed": 2**32}, "seed is"),
        ({"theme": "x"}, "Unrecognized"),
    ]:
        assert words in error_of(client.post("/chat/settings", json=body), 400)
    assert client.get("/chat/session").json()["settings"] == default
    client.post("/chat/settings", json={"top_p": 0.5, "seed": None})
    assert log_in().get("/chat/session").json()["settings"] == default | {"top_p": 0.5}
    assert log_in("bob").get("/chat/session").json()["settings"] == default


def upload(client, content, name="a.txt", **headers):
    headers = {"Content-Type": "application/octet-stream"} | headers
    return client.post("/chat/files", params={"name": name}, content=content, headers=headers)


def test_files(log_in):
    client = log_in()
    read = upload(client, b"text", name="../../a.txt").json()
    assert read == {"name": "a.txt", "text": "text", "n_tokens": 4}
    assert "a.txt has 64 tokens, and the model's context 64" in error_of(
        upload(client, b"x" * 64), 400
    )
    assert "is no .txt" in error_of(upload(client, b"x", name="a.html"), 400)
    error_of(upload(client, b"x", **{"Content-Type": "text/plain"}), 415)


def test_a_large_file_is_refused_before_it_has_come(log_in):
    client = log_in()
    chunks = []

    def content():
        while len(chunks) < 1600:
            chunks.append(1)
            yield bytes(1 << 16)

    stated = upload(client, content(), **{"Content-Length": str(100 << 20)})
    assert f"{uploads.MAX_FILE_BYTES:,} bytes" in error_of(stated, 413)
    long = b'"' + b"x" * request_body.MAX_BODY_BYTES + b'"'
    response = client.post(
        "/chat/settings", content=long, headers={"Content-Type": "application/json"}
    )
    error_of(response, 413)


def test_export_and_delete(log_in):
    client = log_in()
    kept, place = begin(client), begin(client)
    answer(client, place, content="one", files=[{"name": "/x/a.txt", "text": "T"}])
    client.post("/chat/settings", json={"system_prompt": "sys"})
    response = client.get("/chat/export")
    assert re.match('attachment; filename="', response.headers["Content-Disposition"])
    whole = response.json()
    assert whole["name"] == "ann" and whole["settings"]["system_prompt"] == "sys"
    assert "argon2" not in response.text
    first = whole["conversations"][0]["messages"][0]
    assert first["content"] == "one" and first["files"] == [{"name": "a.txt", "text": "T"}]
    assert client.delete(place).status_code == 200
    error_of(client.get(place), 404)
    assert read(client, kept) == []
    assert client.delete("/chat/data").status_code == 200
    whole = client.get("/chat/export").json()
    assert whole["conversations"] == [] and whole["settings"]["system_prompt"] == ""


def test_prompts_are_logged_only_where_wanted(log_in):
    lines = []
    client = log_in(lines=lines, log_prompts=True)
    answer(client, begin(client), content="one")
    assert json.loads(lines[-1])["prompts"] == ["u:one|a:"]
    assert "annann12" not in "".join(lines)


def test_no_new_answers_while_draining(log_in):
    load = access_log.Load()
    client = log_in(load=load)
    place = begin(client)
    load.is_draining = True
    response = client.post(f"{place}/answer", json={"model": "tiny", "content": "x"})
    error_of(response, 503)
    assert read(client, place) == []


def test_a_database_that_cannot_be_written_is_one_line(log_in, users):
    client = log_in()
    with users.transaction() as connection:
        pass
    connection.execute("PRAGMA query_only = ON")
    assert "cannot be read or stored" in error_of(client.post("/chat/conversations", json={}), 503)
    connection.execute("PRAGMA query_only = OFF")
    assert sessions.COOKIE in client.cookies and begin(client)


def test_a_policy_filters_messages_and_answers(log_in):
    generator, lines = FakeGenerator(lambda request: b"ask a@b.co now"), []
    rules = (safety.PersonalData(),)
    policy = safety.Policy(name="test", input=rules, output=rules)
    client = log_in(generator=generator, policy=PolicyFilter(policy, lines.append))
    place = begin(client)
    chunks = answer(client, place, content="of c@d.com")[1:]
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert streamed == read(client, place)[1]["content"] == "ask <email> now"
    assert b"u:of <email>|" in bytes(generator.requests[0].prompt) and len(lines) == 2
    client.post("/chat/settings", json={"token_view": True})
    answer(client, place, content="x")
    assert read(client, place)[3]["tokens"] is None
    session = client.get("/chat/session").json()
    assert session["models"][0]["token_view"] is False  # which is why
    assert session["settings"]["token_view"] is True  # elsewhere


def test_a_policy_that_only_records_leaves_the_token_view(log_in):
    policy = safety.Policy(name="test", output=(safety.PersonalData(action="log"),))
    for policies in ({}, {"policy": PolicyFilter(policy, lambda line: None)}):
        client = log_in(**policies)
        place = begin(client)
        assert client.get("/chat/session").json()["models"][0]["token_view"] is True
        client.post("/chat/settings", json={"token_view": True})
        answer(client, place, content="x")
        assert read(client, place)[1]["tokens"]
