"""What stands where in the rows of a batch."""

import numpy as np

from gptjax.evals import tree_batches
from gptjax.evals.tree_batches import Request
from gptjax.sharding import rules


def laid_out(questions):
    return list(tree_batches.plan_batches(questions, rules.UNSHARDED))


def n_read(questions):
    return sum(
        leaf.n_own
        for _, _, rows in laid_out(questions)
        for units in rows
        for unit in units
        for leaf in unit
    )


def test_a_context_is_scored_once():
    context = tuple(range(100))
    assert n_read([Request(context, ((1,), (2,), (3,)))]) == 100
    assert n_read([Request(context, ((1, 2, 9), (3,), (1, 2, 4), (1, 5)))]) == 100 + 2  # 1, 2
    assert n_read([Request(context + (7,), ((1,),)), Request(context + (8,), ((1,), (2,)))]) == 102


def test_contexts_that_share_little_are_scored_separately():
    shared = tuple(range(40))
    assert n_read([Request(shared + (i,) * 50, ((1,),)) for i in (100, 101)]) == 180


def test_a_long_shared_beginning_is_read_again_where_the_row_would_be_too_long():
    shared = tuple(range(400))
    questions = [Request((*shared, *(1000 + i,) * 50), ((1,),)) for i in range(60)]
    units = tree_batches._build_units(questions)
    assert all(sum(leaf.n_own for leaf in unit) <= 3 * 450 for unit in units)
    assert n_read(questions) == 400 * len(units) + 50 * 60 and len(units) == 4


def test_there_is_little_padding():
    rng = np.random.default_rng(0)
    questions = [
        Request((i, *rng.integers(0, 9, rng.integers(20, 700)).tolist()), ((1, 2), (3,)))
        for i in range(400)
    ]
    read = sum(n * length for n, length, _ in laid_out(questions))
    assert read < 1.06 * n_read(questions)
    assert len({(n, length) for n, length, _ in laid_out(questions)}) <= 8
