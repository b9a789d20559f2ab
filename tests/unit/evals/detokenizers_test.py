"""Texts put together again, a rule at a time."""

import pytest

from gptjax.evals import detokenizers


@pytest.mark.parametrize(
    "cut,whole",
    [
        (
            " Boulter is an actor , and had a part in 2000 .",
            " Boulter is an actor, and had a part in 2000 .",
        ),
        (
            " the players ' union ; the Giants ' win in 1 @.@ 5 hours",
            " the players'union; the Giants' win in 1.5 hours",
        ),
        (' et al . , who said " no . " , left', ' et al., who said "no.", left'),
        (" wait . . . what ? ! ; no : yes", " wait. .. what? !; no: yes"),
        (" James ' book , the boys ' club", " James'book, the boys' club"),
        (" U.S. : 3 , 4 : 5 ; 6", " U.S.: 3, 4: 5; 6"),
        (
            " In 2 @,@ 000 a co @-@ op 's ( the ) \" play \" [ 1 ] { x } ' o ' 20 \u00b0 C",
            " In 2,000 a co-op's (the) \"play\" [1] {x}' o ' 20\u00b0C",
        ),
        ("a  \n  = = = = x = = = = \n y , . : z", "a \n ==== x ====\ny, .: z"),
        (
            " = = Career = = \n \n = = = N = = = \n N '90s 's /' 5/",
            " == Career ==\n\n=== 1 ===\nN '90s's /'[0-9]/",
        ),
    ],
)
def test_wikitext(cut, whole):
    """The right column by running lm-evaluation-harness' preprocess_wikitext.py."""
    assert detokenizers.apply(cut, detokenizers.WIKITEXT) == whole


@pytest.mark.parametrize(
    "cut,whole",
    [
        ("`` Do n't ! '' said Ida 's cat ; it 'll go .", "\"Don't!\" said Ida's cat; it'll go."),
        (
            "the boys ' boat -LRB- a red one -RRB- , `` he said , ` yes ' , '' ended",
            "the boys' boat (a red one), \"he said, 'yes',\" ended",
        ),
        ("It cost $ 5 , or 3 % .", "It cost $5, or 3%."),
    ],
)
def test_childrens_books(cut, whole):
    assert detokenizers.apply(cut, detokenizers.CBT) == whole


@pytest.mark.parametrize(
    "cut,whole",
    [
        ('" I do n\'t know , " she said ( in May ) .', '"I don\'t know," she said (in May).'),
        (
            "It 's up $ 3.5 million , or 5 % , he 'd say : no !",
            ("It's up $3.5 million, or 5%, he'd say: no!"),
        ),
        ('No quotation " is open .', 'No quotation " is open.'),
    ],
)
def test_one_billion_words(cut, whole):
    assert detokenizers.apply(cut, detokenizers.LM1B) == whole
