"""GPT-3's scrambled words, counted against section 3.9.2 of its paper and the released files
(openai/gpt-3, data/)."""

import collections
import dataclasses
import itertools

import pytest

from gptjax.evals import word_list
from gptjax.evals.tasks import scrambling

TASKS = {task.name: task for task in scrambling.TASKS}
SHORTEST = {
    name: 6 if name == "mid_word_2_anagrams" else 5 for name in TASKS
}  # of five letters, the middle one has one order
CV = [consonant + vowel for consonant in "bdfglmnrst" for vowel in "aeiou"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Words of 4 to 16 letters, most of them of 6, with frequencies; in no order of the
    alphabet."""
    made = [
        "".join(parts)
        for n in (2, 3)
        for parts in itertools.islice(itertools.product(CV, repeat=n), 30_000)
    ]
    longer = [
        f"{word}{'nt' * n}{end}" for n, word in enumerate(made[3000:3006]) for end in ("", "s")
    ]
    lines = [
        f"{word}\t{9**9 - number}"
        for number, word in enumerate(reversed(made + longer + ["level", "geeese", "rotator"]))
    ]
    path = tmp_path_factory.mktemp("words") / "count_1w.txt"
    path.write_text(
        "\n".join(
            [
                "the 23135851162",
                "reeedd 8",
                "I'm 7",
                "Paris 5",
                "caf\u00e9s 4",
                "",
                *lines,
                "anna",
                "xxxxxxx",
            ]
        )
    )
    return str(path)


def rows(name, path, wording="paper", seed=0):
    protocol = dataclasses.replace(scrambling.PROTOCOL, prompt_variant=wording, words=path)
    return list(TASKS[name].make_rows(protocol, seed, "test"))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("wording", ["paper", "released"])
def test_10000_words_of_the_stated_lengths(name, wording, listed):
    found = rows(name, listed, wording)
    lengths = {len(row["word"]) for row in found}
    shortest, longest = (
        (SHORTEST[name], 14)
        if wording == "paper"
        else (5 if name == "mid_word_1_anagrams" else 6, 15)
    )
    assert (
        min(lengths) == shortest
        and max(lengths) <= longest
        and (wording == "paper") != (15 in lengths)
    )
    assert (
        9_990
        <= len({row["word"] for row in found})
        == len({row["id"] for row in found})
        == len(found)
        <= 10_000
    )
    assert all(
        row["word"].islower() and row["word"].isascii() and row["word"].isalpha() for row in found
    )
    assert (
        found == rows(name, listed, wording) != rows(name, listed, wording, seed=1)
        or name == "reversed_words"
    )


def test_cycled_words_are_rotations_by_every_offset_and_never_the_word(listed):
    offsets = collections.Counter()
    for row in rows("cycle_letters_in_word", listed):
        word, scrambled = row["word"], row["scrambled"]
        turns = [
            offset for offset in range(1, len(word)) if word[offset:] + word[:offset] == scrambled
        ]
        assert turns and scrambled != word
        if len(word) == 6 and len(turns) == 1:
            offsets[turns[0]] += 1
    expected = offsets.total() / 5
    assert all(abs(offsets[offset] - expected) < 6 * expected**0.5 for offset in range(1, 6)), (
        offsets
    )


@pytest.mark.parametrize("wording", ["paper", "released"])
@pytest.mark.parametrize("name,fixed", [("mid_word_1_anagrams", 1), ("mid_word_2_anagrams", 2)])
def test_anagrams_keep_their_ends_and_are_the_word_only_where_no_other_order_is(
    name, fixed, wording, listed
):
    """As in OpenAI's files: of A2's 10,000 words 193 are unchanged, all of them of one inner
    letter; of A1's none."""
    found = rows(name, listed, wording)
    for row in found:
        word, scrambled = row["word"], row["scrambled"]
        assert (scrambled[:fixed], scrambled[-fixed:]) == (word[:fixed], word[-fixed:]) and sorted(
            scrambled
        ) == sorted(word)
    unchanged = [row["word"] for row in found if row["word"] == row["scrambled"]]
    assert all(len(set(word[fixed:-fixed])) == 1 for word in unchanged)
    assert bool(unchanged) == (fixed == 2)


def test_a1_leaves_out_what_has_no_other_order(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("geeeeg\nboooot\ncasino\n")
    assert [row["word"] for row in rows("mid_word_1_anagrams", str(path))] == ["casino"]
    assert [row["word"] for row in rows("mid_word_2_anagrams", str(path))] == [
        "geeeeg",
        "boooot",
        "casino",
    ]


def test_insertions_stand_between_every_two_letters(listed):
    found = rows("random_insertion_in_word", listed)
    assert all(row["scrambled"][::2] == row["word"] for row in found)
    marks = collections.Counter("".join(row["scrambled"][1::2] for row in found))
    assert set(marks) == set(" ./!") and all(
        abs(n - marks.total() / 4) < 6 * (marks.total() / 4) ** 0.5 for n in marks.values()
    ), marks


def test_reversed_words(listed):
    found = rows("reversed_words", listed)
    assert all(row["scrambled"] == row["word"][::-1] for row in found)


def test_prompts_are_those_of_the_paper():
    (item,) = TASKS["cycle_letters_in_word"].items(
        {"id": "0", "word": "casino", "scrambled": "asinoc"}, scrambling.PROTOCOL, 0
    )
    assert (
        scrambling.PROTOCOL.description + scrambling.PROTOCOL.separator + item.as_demonstration
        == ("Please unscramble the letters into a word, and write that word:\nasinoc = casino")
    )
    score = TASKS["cycle_letters_in_word"].score
    assert [score("exact_match", text, item) for text in (" casino", " Casino", " casinos")] == [
        1,
        0,
        0,
    ]


def test_a_list_by_frequency_is_taken_from_its_top_and_an_alphabetical_one_by_chance(tmp_path):
    path = tmp_path / "words"
    path.write_text("\n".join(["zebra", "apple", "mango", "grape"]))
    assert word_list.load_words(str(path), 5, 14, 2, seed=0) == ["zebra", "apple"]
    path = tmp_path / "sorted"
    path.write_text("\n".join(sorted(f"{pair}{other}x" for pair in CV for other in CV)))
    drawn = word_list.load_words(str(path), 5, 14, 100, seed=0)
    assert (
        drawn
        == word_list.load_words(str(path), 5, 14, 100, seed=0)
        != word_list.load_words(str(path), 5, 14, 100, seed=1)
    )
    assert len(set(drawn)) == 100 and {word[0] for word in drawn} == set("bdfglmnrst")


def test_a_missing_word_list_is_a_one_line_error(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError,
        match="words=.*nowhere: there is no such file: give a file with one word .*norvig.com",
    ):
        word_list.load_words(str(tmp_path / "nowhere"), 5, 14, 10, 0)
    monkeypatch.setattr(word_list, "SYSTEM_WORDS", tmp_path / "dict")
    with pytest.raises(
        ValueError,
        match=(
            "there is no word list at .*dict: give .* with --set all.words=FILE .evaluate. or "
            "--words=FILE"
        ),
    ):
        word_list.load_words(None, 5, 14, 10, 0)
    (tmp_path / "dict").write_text("a\nfew\n")
    with pytest.raises(ValueError, match="dict has no word of 5 to 14 letters"):
        word_list.load_words(None, 5, 14, 10, 0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary is not text"):
        word_list.load_words(str(tmp_path / "binary"), 5, 14, 10, 0)
