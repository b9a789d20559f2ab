"""bench/startup.py: where the time of a start goes."""

from bench import startup


def test_a_moment_counts_to_the_interval_that_began_last():
    seconds = startup.self_seconds(
        [("data", 1, 7), (startup.IMPORTS, 2, 4), ("trace", 3, 4), ("lower", 8, 12)], 0, 10
    )
    assert {name: s for name, s in seconds.items() if s} == {
        "data": 4,
        startup.IMPORTS: 1,
        "trace": 1,
        "lower": 2,
        startup.REST: 2,
    }
