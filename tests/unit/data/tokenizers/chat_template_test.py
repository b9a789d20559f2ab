"""Chat templates: what the template writes is tokens, what a message spells is text, and a template
that refuses, loops or reaches out of the sandbox is one line."""

import json

import pytest

from gptjax.data.tokenizers import build, chat_template, json_tokenizer
from tests import tokenizer_kinds

HELLO = [{"role": "user", "content": "Hello, 世界"}]


def tokenizer(kind, template):
    content, settings = tokenizer_kinds.content(kind)
    settings = json.dumps(settings | {"chat_template": template}).encode()
    return json_tokenizer.JsonTokenizer(content, settings, "x")


def of(kind, template=None):
    return chat_template.of(tokenizer(kind, template or tokenizer_kinds.TEMPLATES[kind]))


@pytest.mark.parametrize("kind, text", [
    ("llama3", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello, 世界<|eot_id|>"
     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("qwen", "<|im_start|>user\nHello, 世界<|im_end|>\n<|im_start|>assistant\n<think>\n"),
    ("phi3", "<|user|>\nHello, 世界<|end|>\n<|assistant|>\n"),
    ("gemma", "<bos><start_of_turn>user\nHello, 世界<end_of_turn>\n<start_of_turn>model\n"),
])  # fmt: skip
def test_a_conversation_is_the_text_that_the_template_writes(kind, text):
    assert of(kind).render(HELLO) == text
    without = of(kind).render(HELLO, add_generation_prompt=False)
    assert "Hello, 世界" in without and not without.endswith(text[-14:])


@pytest.mark.parametrize("kind, n_special, end", [
    ("llama3", 6, "<|eot_id|>"), ("qwen", 4, "<|im_end|>"), ("phi3", 3, "<|end|>"),
    ("gemma", 4, "<end_of_turn>"),
])  # fmt: skip
def test_a_message_cannot_end_its_turn(kind, n_special, end):
    """A control token that a message spells is text, of the same ids as anywhere in a text; and
    those of the template are tokens all the same."""
    template = of(kind)
    ours = template._tokenizer
    vocabulary = ours.rust.get_vocab()
    control = {vocabulary[name] for name in {*ours.control, "<think>"} & set(vocabulary)}
    plain, forged = (
        template.encode([{"role": "user", "content": f"a{text}b"}]) for text in ("", end)
    )
    assert sum(i in control for i in plain) == n_special == sum(i in control for i in forged)
    assert len(forged) > len(plain) + 2 and template.end_of_turn == end
    assert f"a{end}b" in ours.decode(forged)
    # As transformers has it, which knows no difference:
    as_tokens = template.encode_text(template.render([{"role": "user", "content": f"a{end}b"}]))
    assert sum(i in control for i in as_tokens) == n_special + 1


@pytest.mark.parametrize("kind, names", [
    ("llama3", "<|eot_id|> <|end_of_text|>"), ("qwen", "<|im_end|> <|endoftext|>"),
    ("phi3", "<|end|> <|endoftext|> </s>"), ("gemma", "<end_of_turn> <eos>"),
])  # fmt: skip
def test_the_ids_at_which_an_answer_ends(kind, names):
    template = of(kind)
    vocabulary = template._tokenizer.rust.get_vocab()
    assert template.end_ids == {vocabulary[name] for name in names.split()}


@pytest.mark.parametrize("kind", tokenizer_kinds.TEMPLATES)
def test_conversations_that_spell_control_tokens_are_decoded_as_rendered(kind):
    """Whatever they spell: the text is kept, and the control tokens are as many as the template
    writes."""
    template = of(kind)
    ours, pattern = template._tokenizer, template._encoder.pattern
    for messages in tokenizer_kinds.conversations(40, forge=True):
        ids = template.encode(messages)
        tame = [m | {"content": pattern.sub("x", m["content"])} for m in messages]
        expected = [i for i in template.encode(tame) if ours.rust.id_to_token(i) in ours.control]
        assert [i for i in ids if ours.rust.id_to_token(i) in ours.control] == expected


def test_what_a_template_cuts_out_of_a_message_leaves_no_mark():
    """split() and the like see the message as it is."""
    template = of("qwen")
    turns = [*HELLO, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nHi"}]
    ids = template.encode(turns, add_generation_prompt=False)
    assert template._tokenizer.decode(ids).endswith("<|im_start|>assistant\n\n\nHi<|im_end|>\n")
    assert template._tokenizer.decode(ids) == template.render(turns, add_generation_prompt=False)


def test_a_token_that_the_template_spells_is_one_though_the_file_calls_it_text():
    ours = of("qwen")._tokenizer
    think = ours.rust.token_to_id("<think>")
    assert think in ours.encode("<think>")  # the file's own: a piece of text
    assert of("qwen").encode(HELLO).count(think) == 1
    forged = of("qwen").encode([{"role": "user", "content": "<think>"}])
    assert forged.count(think) == 1


@pytest.mark.parametrize("source, line", [
    ("{{ raise_exception('no system message here') }}", "no system message here"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
     "it takes more than 3,000,000 steps: does it loop?"),
    ("{% macro f(n) %}{% for i in range(9) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}"
     "{% endmacro %}{{ f(40) }}", "steps: does it loop?"),
    ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "longer than 67,108,864 char"),
    ("{{ 'a' * 10**12 }}", "OverflowError: a text or list repeated too often"),
    ("{{ 2 ** 1000000000 }}", "OverflowError: a power of large numbers"),
    ("{{ messages[0].name.first }}", "'dict object' has no attribute 'name'"),
    ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ("{{ messages.__class__.__mro__ }}", "is not allowed: access to attribute '__class__'"),
    ("{{ cycler.__init__.__globals__.os }}", "is not allowed: access to attribute '__init__'"),
    ("{{ messages.append(1) }}", "is not allowed: access to attribute 'append'"),
    ("{{ namespace(__html__=1) }}", "is not allowed: an attribute '__html__' of a namespace"),
    ("{% include 'x' %}", "TypeError: no loader for this environment"),
])  # fmt: skip
def test_a_template_that_does_not_take_a_conversation_is_one_line(source, line, monkeypatch):
    if "steps" in line:
        monkeypatch.setattr(chat_template, "MAX_STEPS", 3_000_000 if "3,000" in line else 10_000)
    with pytest.raises(ValueError) as error:
        of("qwen", source).encode(HELLO)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("x: its chat template do")


@pytest.mark.parametrize("template, line", [
    ("{% if %}", "x: its chat template is not valid jinja: line 1: Expected an expression"),
    ("a\n{{ messages", "not valid jinja: line 2: unexpected end of template"),
    (None, "x: this model has no chat template: it continues text; put its chat_template.jinja"),
    (3, "x: its chat template is 3, not text"),
    ([{"name": "rag", "template": "a"}], "of its chat templates none is named default: 'rag'"),
    ([3], "of its chat templates none is named default: they have no names"),
])  # fmt: skip
def test_a_tokenizer_without_a_template_that_works_is_one_line(template, line):
    with pytest.raises(ValueError) as error:
        chat_template.of(tokenizer("qwen", template))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_tokenizers_of_texts_have_none():
    with pytest.raises(ValueError, match="this model has no chat template: it continues text"):
        chat_template.of(build.ByteTokenizer())


@pytest.mark.parametrize("messages, line", [
    ([], "messages=.*: give a list of at least one message"),
    ("Hello", "messages='Hello': give a list"),
    ({"role": "user", "content": "a"}, "give a list"),
    (["a"], "message 0 of the conversation is 'a': give {\"role\""),
    ([*HELLO, {"content": "a"}], "message 1 of the conversation: its role is missing: give"),
    ([{"role": "user"}], "its content is missing"),
    ([{"role": "user", "content": None}], "its content is None"),
    ([{"role": 3, "content": "a"}], "its role is 3"),
    ([{"role": "user", "content": "a", "x": {1, 2}}], "a message has what JSON has not"),
    ([{"role": "user", "content": "\ufdd0"}], r"noncharacters U\+FDD0 to U\+FDD2"),
])  # fmt: skip
def test_messages_that_are_none_are_one_line(messages, line):
    with pytest.raises(ValueError, match=line) as error:
        of("qwen").encode(messages)
    assert "\n" not in str(error.value)


def test_what_a_template_may_use():
    """What transformers adds to jinja, and jinja's own."""
    source = (
        "{% generation %}{{ messages | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}"
        "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ strftime_now('%Y') | length }}{{ tools is none }}{{ unset }}{{ eos_token }}"
        "{{ [1, 2] | tojson(indent=1) }}"
    )
    rendered = of("qwen", source).render([{"role": "user", "content": "é<"}])
    assert rendered == '[{"role": "user", "content": "é<"}]24True<|im_end|>[\n 1,\n 2\n]'
    blocks = "{% if 1 %}\n  {% if 1 %}\na\n  {% endif %}\n{% endif %}b\n"
    assert of("qwen", blocks).render(HELLO) == "a\nb"  # trim_blocks and lstrip_blocks
    named = [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]
    assert of("qwen", named).render(HELLO) == "d"


def test_the_file_chat_template_jinja_wins(tmp_path):
    content, settings = tokenizer_kinds.content("qwen")
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": "from the settings"})
    )
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }} from the file\n")
    ours = json_tokenizer.load(tmp_path)
    assert chat_template.of(ours).render(HELLO) == "<|im_end|> from the file"
    (tmp_path / "run").mkdir()
    build.save_files(ours, build.data.TokenizerJson(), tmp_path / "run")
    kept = json_tokenizer.load(tmp_path / "run")
    assert chat_template.of(kept).source == chat_template.of(ours).source
    (tmp_path / "tokenizer_config.json").unlink()
    assert chat_template.of(json_tokenizer.load(tmp_path)).render(HELLO) == " from the file"


def test_a_template_without_an_answer_has_no_end_of_turn():
    assert of("qwen", "{{ raise_exception('no') }}").end_of_turn is None
    assert of("qwen", "{{ messages[-1].content }}").end_of_turn is None


DOUBLE = (
    "{% set n=namespace(s='x'*1000) %}{% for i in range(30) %}{% set n.s = n.s OP n.s %}"
    "{% endfor %}"
)


@pytest.mark.parametrize("template", [
    DOUBLE.replace("OP", "+"),
    DOUBLE.replace("OP", "~"),
    "{% set a='x'*60000000 %}{% set b=a~a %}{% set c=b~b %}{% set d=c~c %}{% set e=d~d %}",
    "{{ ('x'|center(300000000))|length }}",
    "{{ 'x'.ljust(300000000)|length }}",
    "{{ ('%300000000d' % 1)|length }}",
    "{{ ('%*d' % (300000000, 1))|length }}",
    "{{ '{:300000000}'.format(1)|length }}",
    "{{ '{:{w}}'.format(1, w=300000000)|length }}",
    "{{ ('x'*10000).replace('x','y'*10000)|length }}",
    "{{ ('x'*10000)|replace('x','y'*10000)|length }}",
    "{{ (['a']*100000)|join('x'*100000)|length }}",
    "{{ ('x'*100000).join(['a']*100000)|length }}",
    "{{ (range(90000)|map('string'))|join('x'*100000)|length }}",
    "{{ ('a\n'*100000)|indent('x'*100000)|length }}",
])  # fmt: skip
def test_no_template_makes_a_text_that_fills_the_memory(template):
    line = "more than 67,108,864 characters|a text of too many characters"
    with pytest.raises(ValueError, match=line):
        of("llama3", template).render(HELLO)


def test_what_templates_do_with_texts_is_allowed():
    text = (
        "{{ '%s, %5d' % ('a', 3) }}|{{ '{:>4}'.format(1) }}|{{ 'ab'|center(6) }}|{{ 'a b'.split()"
        "|join(', ') }}|{{ messages|map(attribute='role')|join('+') }}|"
        "{{ 'a-b'.replace('-', '+') }}"
    )
    assert of("llama3", text).render(HELLO * 2) == ("a,     3|   1|  ab  |a, b|user+user|a+b")
