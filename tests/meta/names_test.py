"""House rules that a reader could check with a ruler: names, words, docstrings, sizes, and no
reader of a config that supplies a default."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("gptjax", "configs", "bench", "launch")
    for path in (ROOT / folder).rglob("*.py")
)
BANNED = {
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "misc",
    "core",
    "base",
    "manager",
    "managers",
}
CONFIGS = {
    "config",
    "cfg",
    "model",
    "data",
    "train",
    "compute",
    "mesh",
    "loop",
    "schedule",
    "optimizer",
}
AXES = {"data", "fsdp", "tensor", "context"}
BRITISH = (
    r"(tokeni|normali|initiali|optimi|seriali|materiali|summari|recogni|speciali|organi|utili"
    r"|generali|capitali|randomi|vectori|synchroni)s(e|ed|er|es|ing|ation)"
    r"|colour|neighbour|behaviour|favour|labell|modell|travell|cancell|artefact|analys(e|ing)"
)
# Verbs of speech and idioms of this code's earlier texts; "is said to" cites, and "asked" in quotes
# is a key of an outcome.
WORDS = (
    r"told|foretold|tells?|(?<!\")asked|said(?! to\b)|spoken|speaks|mend(s|ed|ing)?|beside|by turns"
    r"|passed over|for ever|learnt|spelt|grey|programme|metres?"
)
BAD_PROSE = re.compile(rf"\w*({BRITISH})\w*(?!\w*/)|\b({WORDS})\b", re.IGNORECASE)  # "/": a path
BAD_NAMES = re.compile(rf"{BRITISH}|(?<![a-z])({WORDS})(?![a-z])", re.IGNORECASE)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST):
    return (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def long_functions(text: str, limit: int) -> list[str]:
    """Functions of more lines than the limit, docstring included."""
    long = [(f.name, (f.end_lineno or 0) - f.lineno + 1) for f in functions(ast.parse(text))]
    return [f"{f} has {n} lines" for f, n in long if n > limit]


def defaults(text: str) -> list[str]:
    """Calls that read a field and supply a default: getattr with three arguments, and .get on what
    is called like a config.

    Python's own __names__ may be asked for so: they are no fields.
    """
    said = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 3:
            said += [ast.unparse(node)] * (not ast.unparse(node.args[1]).startswith("'__"))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = ast.unparse(node.func.value).split(".")[-1]
            said += [ast.unparse(node)] * (owner in CONFIGS)
    return said


def axis_literals(text: str) -> list[str]:
    """Strings that name a mesh axis."""
    return [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in AXES
    ]


def prose(text: str) -> list[str]:
    """The docstrings, those of fields too, and the comments, each on one line."""
    found = [
        part.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, *DEFINITIONS))
        for part in node.body
        if isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found += [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [" ".join(part.split()) for part in found]


def defined_names(text: str) -> set[str]:
    """Names that the text gives to modules, functions, classes, parameters and variables."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.arg():
                names.add(node.arg)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                names.add(node.attr)
    return names


def bad_words(text: str) -> list[str]:
    """Words of docstrings and comments, then names, that a reader would stumble over."""
    words = [match[0] for part in prose(text) for match in BAD_PROSE.finditer(part)]
    return words + sorted(name for name in defined_names(text) if BAD_NAMES.search(name))


def undocumented(text: str) -> list[str]:
    """The module, and its public functions and classes, that have no docstring."""
    tree = ast.parse(text)
    public = [
        node
        for node in tree.body
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_")
    ]
    missing = [] if ast.get_docstring(tree) else ["the module"]
    return missing + [node.name for node in public if not ast.get_docstring(node)]


def test_nothing_cites_what_only_the_developers_have():
    """A source is a paper, or a public repository or thread."""
    tests = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    private = re.compile(r"\bfacts/|shared/(facts|faults|house|design)\b")
    assert [name(path) for path in [*SOURCES, *tests] if private.search(path.read_text())] == []


def test_no_module_is_called_after_nothing():
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert (
        SOURCES
        and [
            name(p)
            for p in [*SOURCES, *tests]
            if BANNED & {*p.relative_to(ROOT).with_suffix("").parts}
        ]
        == []
    )


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, (
        "at most 400 lines: give what answers a question of its own a file"
    )
    assert long_functions(text, 80) == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_reader_supplies_a_default(path):
    assert defaults(path.read_text()) == [], "a default belongs in the schema"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent == ROOT / "gptjax" / "model"], ids=name
)
def test_the_model_names_letters_and_no_mesh_axis(path):
    assert axis_literals(path.read_text()) == [], "sharding/rules.py maps letters to mesh axes"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_docstrings_comments_and_names_have_no_banned_word(path):
    assert bad_words(path.read_text()) == [], "American spelling, and plain technical English"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if name(p).startswith(("gptjax/", "launch/"))], ids=name
)
def test_every_public_definition_has_a_docstring(path):
    assert undocumented(path.read_text()) == []


def test_the_rulers_themselves():
    body = "def f():\n" + "    x = 1\n" * 80
    assert long_functions(body, 80) == ["f has 81 lines"] and long_functions(body, 81) == []
    refused = ["getattr(x, 'a', 1)", "self.config.get('b')", "model.get('c', 2)"]
    assert (
        defaults(
            "; ".join(
                [*refused, "getattr(x, 'a')", "getattr(x, '__name__', '')", "os.environ.get('d')"]
            )
        )
        == refused
    )
    assert axis_literals("P('fsdp', None); 'BTD'; 'fsdp or tensor'") == ["fsdp"]


def test_the_rulers_of_words_and_docstrings():
    text = '''"""What is told to the user.

    A neighbour is "asked", and is said to be asked."""
def mend_label(colour): """Initialises, optimistically, a summary."""
class C:
    """The telling tells a mending, beside labelled/ and TOKENIZERS_PARALLELISM."""
    tokenised = 1
def _private(): pass
'''
    assert bad_words(text) == [
        *("told", "neighbour", "asked", "Initialises", "tells", "mending", "beside"),
        *("colour", "mend_label", "tokenised"),
    ]
    assert undocumented(text) == []
    assert undocumented("x = 1\ndef f(): pass\nclass C: pass\ndef _g(): pass") == [
        *("the module", "f", "C")
    ]
