"""What `import gptjax` offers."""

import dataclasses
import doctest
import functools
import inspect
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptjax
from gptjax import api, convert, finetune, language_model, train
from gptjax.config import overrides, schema
from gptjax.configs import registry
from gptjax.data.sources import stdlib_corpus
from gptjax.data.sources.document import Document
from gptjax.report import events
from tests import short_run, tiny

# --- names --------------------------------------------------------------------------------------


def test_importing_gptjax_imports_no_other_package():
    """Nor any of its own files: so `import gptjax` takes no time, and each program only what it
    needs."""
    code = (
        "import sys; before = set(sys.modules); import gptjax; dir(gptjax); "
        "new = {n.split('.')[0] for n in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names))); "
        "print([n for n in sys.modules if n.startswith('gptjax.')])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines() == ["['gptjax']", "[]"]


def test_each_name_is_there_and_documented():
    for name in gptjax.__all__:
        function = getattr(api, name) if name in gptjax.MODULES else getattr(gptjax, name)
        assert function is getattr(api, name) and inspect.getdoc(function) and name in dir(gptjax)
    with pytest.raises(AttributeError, match="module 'gptjax' has no attribute 'nothing'"):
        gptjax.nothing  # noqa: B018


def test_a_module_that_has_a_functions_name_is_both(monkeypatch):
    assert gptjax.train is train and callable(train.main)
    monkeypatch.setattr(api, "train", lambda *args, **options: (args, options))
    assert gptjax.train(1, init=2) == ((1,), {"init": 2})
    assert not callable(finetune)


def test_configs_are_the_recipes():
    assert gptjax.configs() == {name: registry.config(name) for name in registry.config_names()}
    wide = gptjax.config("gpt3_small", "train.steps=10", "seed=3")
    assert wide == overrides.override(registry.config("gpt3_small"), "train.steps=10", "seed=3")
    for given, line in (
        (["gpt3_smal"], "did you mean gpt3_small"),
        (["nano", "train.step=1"], "did you mean .*steps"),
        (["nano", "x"], "x"),
    ):
        with pytest.raises(ValueError, match=line):
            gptjax.config(*given)


# --- load ---------------------------------------------------------------------------------------


def test_a_run_and_its_export_are_the_same_model(text_run, text_model, one_device, tmp_path):
    run = text_model
    assert (run.kind, run.description, run.config.name) == ("a run of gptjax", "step 2", "smoke")
    banded = "model.attention=(Banded(window=3),)"
    with pytest.raises(ValueError, match="belong to the parameters of .* and cannot be changed"):
        gptjax.load(text_run[1], banded)
    convert.main([f"--from={text_run[1]}", f"--to={tmp_path / 'theirs'}"])
    theirs = gptjax.load(tmp_path / "theirs")
    assert theirs.kind == "Hugging Face gpt2" and repr(theirs).endswith(
        "parameters, Hugging Face gpt2)"
    )
    tokens = run.tokenizer.encode("7 and 8")
    np.testing.assert_allclose(run.logits(tokens), theirs.logits(tokens), atol=1e-5)
    assert run.generate("7", max_new_tokens=8, temperature=0) == theirs.generate(
        "7", max_new_tokens=8, temperature=0
    )


def test_a_checkpoint_is_chosen_by_its_step(text_run, text_model, one_device, tmp_path):
    first, newest = gptjax.load(str(text_run[1]), step=1), text_model
    assert (first.description, newest.description) == ("step 1", "step 2")
    assert first.digest != newest.digest
    for step in (0, 3):
        with pytest.raises(
            ValueError, match=rf"no checkpoint of step {step} in .*; steps there: 1, 2"
        ):
            gptjax.load(text_run[1], step=step)
    convert.main([f"--from={text_run[1]}", f"--to={tmp_path / 'theirs'}"])
    with pytest.raises(ValueError, match="is no run: it has no checkpoint of step 1"):
        gptjax.load(tmp_path / "theirs", step=1)


def test_a_checkpoint_that_is_passed_over_is_a_warning(text_run, one_device, tmp_path):
    run = shutil.copytree(text_run[1], tmp_path / "run")
    (run / "checkpoints" / "2" / "files.json").write_text("{")
    with pytest.warns(UserWarning, match="the checkpoint of step 2 is damaged"):
        assert gptjax.load(run).description == "step 1"
    with pytest.raises(ValueError, match="damaged"), pytest.warns(UserWarning):
        gptjax.load(run, step=2)


def test_dtype_and_kernel_are_as_asked_for(text_run, text_model, one_device):
    m = gptjax.load(text_run[1], "compute.attention_kernel=reference", dtype="bfloat16")
    policy = m.train_step.model.execution_policy
    assert (policy.kernel, policy.dtype.__name__) == ("reference", "bfloat16")
    difference = np.abs(m.logits([1, 2, 3]) - text_model.logits([1, 2, 3])).max()
    assert 0 < difference < 0.1
    for given, line in (({"dtype": "float16"}, "float16"), ({"dtype": "int8"}, "int8")):
        with pytest.raises(ValueError, match=line):
            gptjax.load(text_run[1], **given)


@pytest.mark.slow
def test_the_model_is_the_same_on_a_mesh(text_run, one_device, monkeypatch):
    """All eight devices, of which each has a part of the parameters."""
    alone = gptjax.load(text_run[1])
    tiny.limit_devices(monkeypatch, 8)
    spread = gptjax.load(text_run[1])
    assert spread.mesh.size == 8 and alone.mesh.size == 1 and spread.digest == alone.digest
    np.testing.assert_allclose(spread.logits([1, 2, 3]), alone.logits([1, 2, 3]), atol=1e-5)
    assert spread.score("7 and 8").loss == pytest.approx(alone.score("7 and 8").loss, abs=1e-5)
    assert spread.generate("7", max_new_tokens=4, temperature=0) == alone.generate(
        "7", max_new_tokens=4, temperature=0
    )
    np.testing.assert_allclose(
        spread.attention_weights([1, 2, 3], 1), alone.attention_weights([1, 2, 3], 1), atol=1e-6
    )


def test_what_is_no_language_model_is_one_line(text_run, tmp_path, monkeypatch):
    classifier = shutil.copytree(text_run[1], tmp_path / "classifier")
    recipe = registry.finetuning("gpt1_sst2")
    monkeypatch.setattr(
        "gptjax.runtime.run_dir.load_config",
        lambda run: dataclasses.replace(tiny.config(), name="sst2", task=recipe.task),
    )
    for path, line in (
        (classifier, "is a classifier fine-tuned on sst2 and cannot generate text"),
        (tmp_path / "nothing", "does not exist"),
        ("", "an empty path"),
        ("s3://bucket/run", "give a directory, or a folder of a bucket that starts with gs://"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            gptjax.load(path)
        assert "\n" not in str(error.value)


# --- train --------------------------------------------------------------------------------------


def smoke(text, *assignments: str):
    return gptjax.config(
        "smoke",
        f"data.sources=Text(path={str(text)!r})",
        "data.validation=Tail(fraction=0.1)",
        "model.n_layers=1",
        "train.total_tokens=2304",
        "loop.every_save=4",
        "loop.every_eval=100",
        "loop.sample_tokens=1",
        *assignments,
    )


def test_train_is_the_program(text_run, text_model, one_device, tmp_path, capsys):
    """The same losses bit for bit; the same call goes on; a run that gave up is an error."""
    text, program = text_run
    changes = ("model.n_layers=2", "loop.every_save=1")
    run = gptjax.train(smoke(text, *changes, "train.steps=2"), tmp_path / "called")
    assert short_run.curve(tmp_path / "called") == short_run.curve(program)
    assert run.metrics == events.read(tmp_path / "called") and run.config.train.steps == 2
    assert run.model.digest == text_model.digest
    longer = gptjax.train(smoke(text, *changes, "train.steps=3"), str(tmp_path / "called"))
    assert longer.metrics[-1]["step"] == 3
    assert "continuing from step 2 of 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds a run of another config|is of another config"):
        gptjax.train(smoke(text, "seed=1"), tmp_path / "called")


@pytest.mark.slow
def test_train_begins_with_weights(text_run, one_device, tmp_path):
    run = gptjax.train(
        smoke(text_run[0], "model.n_layers=2", "train.steps=1", "train.schedule.peak_lr=1e-30"),
        tmp_path / "run",
        init=text_run[1],
    )
    a, b = run.model.params, gptjax.load(text_run[1]).params
    assert all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_run_that_gives_up_is_an_error(text_run, one_device, tmp_path):
    config = smoke(
        text_run[0], "train.steps=4", "train.max_nonfinite_steps=1", "train.schedule.peak_lr=1e30"
    )
    with pytest.raises(RuntimeError, match="too many updates in a row were not finite"):
        gptjax.train(config, tmp_path / "run")


@pytest.mark.parametrize("config", ["nano", None, {"name": "nano"}])
def test_a_config_that_is_none_is_one_line(config):
    for call in (gptjax.train, gptjax.make_train_step):
        with pytest.raises(
            ValueError, match=r"give a Config, as gptjax.config\('nano'\) returns it"
        ):
            call(config)


@pytest.mark.parametrize("given", [None, 5, ["smoke"]])
def test_what_is_no_text_is_one_line(given, text_run, one_device):
    with pytest.raises(ValueError, match="give the name of a config, as 'nano'$"):
        gptjax.config(given)
    for call in (lambda: gptjax.config("smoke", given), lambda: gptjax.load(text_run[1], given)):
        with pytest.raises(ValueError, match="is not of the form path=value"):
            call()


@pytest.mark.parametrize("step", ["20", True, 1.5, -1])
def test_a_step_that_is_no_whole_number_is_one_line(step, text_run, one_device):
    with pytest.raises(ValueError, match="^step=.*: give a whole number from 0 to 2,147,483,647$"):
        gptjax.load(text_run[1], step=step)


@pytest.mark.parametrize("stop", [5, ["a", 1], [None]])
def test_a_stop_that_is_no_text_is_one_line(stop, text_run, one_device):
    with pytest.raises(ValueError, match="^stop=.*: give a text, or a list of at least one$"):
        gptjax.load(text_run[1]).generate("a", stop=stop)


def test_a_classifier_is_not_trained_on_text():
    config = dataclasses.replace(tiny.config(), task=registry.finetuning("gpt1_sst2").task)
    for call in (gptjax.train, gptjax.make_train_step):
        with pytest.raises(ValueError, match="python -m gptjax.finetune"):
            call(config)


# --- one training step --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_is_that_of_training(one_device):
    c = tiny.config(n_layers=1, attention=(schema.Dense(),))
    tokens = tiny.random_tokens(c, 2, 4)
    state, step_fn = gptjax.make_train_step(c)
    mesh, train_step, expected = tiny.make_step(c)
    for _ in range(2):
        state, metrics = step_fn(state, tokens)
        with jax.set_mesh(mesh):
            expected, expected_metrics = jax.jit(train_step, static_argnums=2)(expected, tokens, 2)
        assert metrics.keys() == expected_metrics.keys()
        for name in metrics:
            np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-3)
    tiny.assert_near(state.params, expected.params)
    assert int(state.step) == 2 and int(state.rows) == 16
    losses = [
        float(step_fn(jax.tree.map(jnp.copy, state), rows)[1]["loss"])
        for rows in (tokens[0], tokens[:1])
    ]
    assert losses[0] == losses[1]


def test_a_step_begins_with_the_parameters_of_a_model(text_model, one_device):
    m = text_model
    state, step_fn = gptjax.make_train_step(m.config, m.params)
    row = np.array([[*b"1 and 2 make 3. 2 and 3 make 5. 3"]], np.uint8)
    expected = m.score("1")  # the model's own parameters are copied, not consumed
    _, metrics = step_fn(state, row)
    y_TV = jax.nn.log_softmax(m.logits(row[0, :-1]))
    loss = -np.take_along_axis(np.asarray(y_TV), row[0, 1:, None].astype(int), 1).mean()
    assert float(metrics["loss"]) == pytest.approx(loss, abs=1e-5) and m.score("1") == expected
    assert np.isfinite(m.params["token_VD"]).all()
    with pytest.raises(ValueError, match="params are of another model"):
        gptjax.make_train_step(tiny.config(), m.params)


@functools.cache
def eight_devices():
    return gptjax.make_train_step(tiny.config(n_layers=1, attention=(schema.Dense(),)))[1]


@pytest.mark.parametrize("tokens, line", [
    (np.zeros((8, 12), np.int32), r"tokens of shape \(8, 12\): give \(B, 13\) or \(M, B, 13\), n_"),
    (np.zeros(13, np.int32), r"tokens of shape \(13,\)"),
    (np.zeros((0, 13), np.int32), r"tokens of shape \(0, 13\): give at least one token"),
    (np.zeros((8, 13)), "tokens of type float64: give ids"),
    (np.full((8, 13), 61), "token 61 is none of the model's ids, 0 to 60"),
    (np.full((8, 13), -1), "token -1 is none"),
    (np.zeros((4, 13), np.int32), "4 rows do not divide over mesh.data x mesh.fsdp = 8 devices"),
    ([[1, 2], [3]], "rows of several lengths"),
])  # fmt: skip
def test_rows_that_are_no_batch_are_one_line(tokens, line):
    with pytest.raises(ValueError, match=line):
        eight_devices()(None, tokens)


# --- the examples -------------------------------------------------------------------------------


def methods():
    return [
        name
        for name in vars(language_model.LanguageModel)
        if not name.startswith("_") and callable(vars(language_model.LanguageModel)[name])
    ]


def test_every_example_of_the_documentation_runs(text_run, one_device, monkeypatch, capsys):
    """And every public function, class and method has one."""
    monkeypatch.chdir(text_run[0].parent)
    lines = [f"{n} and {n + 1} make {2 * n + 1}. " * 9 for n in range(200)]
    corpus = [Document(line, line, 0.0) for line in lines]
    monkeypatch.setattr(stdlib_corpus, "documents", lambda: iter(corpus))
    opened, open_model = {}, api.open_model.open_model

    def open_once(*args, log, checkpoint_step):
        """Most examples begin with the same model."""
        if (wanted := (*args, checkpoint_step)) not in opened:
            opened[wanted] = open_model(*args, log=log, checkpoint_step=checkpoint_step)
        return opened[wanted]

    monkeypatch.setattr(api.open_model, "open_model", open_once)
    finder = doctest.DocTestFinder(exclude_empty=False)
    tests = [
        t
        for module in (api, language_model)
        for t in finder.find(module, extraglobs={"gptjax": gptjax})
    ]
    wanted = {
        f"{f.__module__}.{f.__qualname__}" for f in map(lambda n: getattr(api, n), gptjax.__all__)
    }
    wanted |= {f"gptjax.language_model.LanguageModel.{name}" for name in methods()}
    assert wanted - {t.name for t in tests if t.examples} == set()
    runner, said = doctest.DocTestRunner(), []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
    assert runner.summarize(verbose=False).attempted > 20
