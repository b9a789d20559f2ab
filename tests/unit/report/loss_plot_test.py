"""loss.png shows the curves that metrics.jsonl holds, whatever is missing from it or broken in
it."""

import json
import math

import pytest

from gptjax.report import events, loss_plot


def records(n, every_valid=0, start=1):
    """n training records of 1,000 tokens each, and a validation record after every
    `every_valid`-th."""
    found = []
    for step in range(start, start + n):
        found.append({"step": step, "tokens": 1000 * step, "loss": 2 + 6 / step, "lr": 3e-4})
        if every_valid and step % every_valid == 0:
            loss = 2.1 + 6 / step
            found.append(
                {
                    "step": step,
                    "tokens": 1000 * step,
                    "validation_loss": loss,
                    "perplexity": math.exp(loss),
                    "bits_per_byte": loss / 3,
                }
            )
    return found


def curves(figure):
    """label -> [(x, y)] of the lines drawn, of both panels."""
    return {
        line.get_label(): list(map(tuple, line.get_xydata()))
        for axes in figure.axes
        for line in axes.get_lines()
    }


def words(figure):
    return " ".join(
        text.get_text()
        for axes in figure.axes
        for text in [*axes.texts, axes.title, axes._left_title]
    )


def test_the_picture_is_a_png_of_the_stated_size_and_replaces_the_old_one(tmp_path):
    with events.Events(tmp_path, 0) as record:
        for values in records(30, 10):
            record.write(values.pop("step"), values)
    (tmp_path / "loss.png").write_text("an old picture")
    raw = loss_plot.draw(tmp_path).read_bytes()
    assert (
        raw[:8] == b"\x89PNG\r\n\x1a\n"
        and int.from_bytes(raw[16:20]) == 1350
        and int.from_bytes(raw[20:24]) == 900
    )
    assert raw[-8:-4] == b"IEND" and len(set(raw)) > 200
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "loss.png",
        "metrics.jsonl",
        "tensorboard",
    ]


def test_the_name_is_the_configs_else_the_directorys(tmp_path):
    assert loss_plot.run_title(tmp_path) == tmp_path.name
    (tmp_path / "config.json").write_text(json.dumps({"name": "gpt3_small", "seed": 0}))
    assert loss_plot.run_title(tmp_path) == "gpt3_small"
    sources = "(Text(path='books/*.txt', field='text', weight=1.0), Embedded(weight=1.0))"
    (tmp_path / "config.json").write_text(json.dumps({"name": "nano", "data.sources": sources}))
    assert loss_plot.run_title(tmp_path) == "nano on books/*.txt"


def test_five_points_are_drawn_as_they_are():
    figure = loss_plot._make_figure("few", records(5, 2))
    drawn = curves(figure)
    assert drawn["training"] == [(1000.0 * s, 2 + 6 / s) for s in range(1, 6)]
    assert drawn["validation"] == [(2000.0, pytest.approx(5.1)), (4000.0, pytest.approx(3.6))]
    assert drawn["learning rate"] == [(1000.0 * s, 3e-4) for s in range(1, 6)]
    assert "training, smoothed" not in drawn
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "linear"]


def test_thousands_of_points_are_thinned_evenly_to_the_eye_and_keep_both_ends():
    figure = loss_plot._make_figure("many", records(20_000, 500))
    assert figure.axes[0].get_xscale() == "log"
    for label, most in (("training", 3000), ("training, smoothed", 400)):
        points = curves(figure)[label]
        assert most / 2 < len(points) <= most
        assert points[0] == (1000, 8.0) and points[-1] == (20_000_000, pytest.approx(2.0003))
        assert (
            sum(x < 1_000_000 for x, _ in points) > len(points) / 8
        )  # the first twentieth of the run is two fifths of the axis


def test_the_facts_of_the_last_validation_are_written():
    said = words(loss_plot._make_figure("nano", records(10, 5)))
    assert all(
        fact in said
        for fact in ("nano", "validation loss 2.7000", "perplexity 14.88", "0.900 bits per byte")
    )
    assert (
        "training loss 2.6000" in (said := words(loss_plot._make_figure("nano", records(10))))
        and "no validation yet" in said
    )


def test_what_is_not_a_number_is_left_out_and_a_spike_does_not_squeeze_the_curve():
    broken = records(100)
    broken[10]["loss"], broken[20]["loss"], broken[60]["loss"] = math.nan, math.inf, 1e6
    figure = loss_plot._make_figure("spike", broken)
    assert len(curves(figure)["training"]) == 98
    low, high = figure.axes[0].get_ylim()
    assert 1 < low < 2.1 and 8 < high < 9
    assert max(y for _, y in curves(figure)["training, smoothed"]) == 8.0


def test_a_run_without_any_loss_has_a_picture_that_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert loss_plot.draw(tmp_path).exists()
    assert (
        "no loss yet" in words(loss_plot._make_figure("new", []))
        and curves(loss_plot._make_figure("new", [])) == {}
    )
    assert "no loss yet" in words(
        loss_plot._make_figure("nan", [{"step": 1, "tokens": 5, "loss": math.nan}])
    )


@pytest.mark.parametrize("few", [True, False])
def test_no_text_overlaps_another(few):
    figure = loss_plot._make_figure(
        "a_config_with_quite_a_long_name_and_more", records(5, 2) if few else records(3000, 50)
    )
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    texts = [
        t
        for axes in figure.axes
        for t in [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    ]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [
                tick.label1
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
            ]
    inside = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    assert all(
        figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max) for _, box in inside
    )
    clashes = [
        (a, b)
        for i, (a, box) in enumerate(inside)
        for b, other in inside[i + 1 :]
        if box.overlaps(other)
    ]
    assert len(inside) > 10 and clashes == []


def test_a_task_has_its_score_and_its_own_axis(tmp_path):
    """Fine-tuning: no logarithm of tokens, the score in the title, and no unit per token."""
    records = [{"step": i, "tokens": 2048 * i, "loss": 1.0 / i, "lr": 1e-4} for i in range(1, 101)]
    figure = loss_plot._make_figure(
        "task",
        [*records, {"step": 100, "tokens": 204800, "validation_loss": 0.5, "accuracy": 91.3}],
    )
    upper, lower = figure.axes
    assert lower.get_xscale() == "linear" and upper.get_ylabel() == "loss (nats)"
    assert "accuracy 91.30%" in upper.texts[0].get_text()
    plain = loss_plot._make_figure("text", records).axes
    assert plain[1].get_xscale() == "log" and plain[0].get_ylabel() == "loss (nats per token)"


def test_a_users_text_is_drawn_as_it_is():
    assert loss_plot.escape("$x^{$ \u00e9") == "\\$x^{\\$ \u00e9"
    assert loss_plot.escape("a\nb\x1b\udcff\u4f60") == "a b\ufffd\ufffd\ufffd"
    assert len(loss_plot.escape("x" * 1000)) == loss_plot.MAX_NAME_LENGTH
    figure = loss_plot.new_figure(3, 2)
    figure.subplots().set_title(loss_plot.escape("$x^{$ \u4f60 \udcff " * 3))
    figure.canvas.draw()  # warns of nothing
