"""Learning of text, as gptjax.train's loop asks for it."""

from typing import Any

from gptjax.config.schema import Config


class Pretraining:
    """Learning of text: GPT-1 equation 1. A Learning."""

    def __init__(self, init: str | None = None):
        """init: where the weights lie that a run begins with; None: they are drawn from the seed."""
        self._init = init

    def reading(self, config, directory, say):
        from gptjax.data import loader

        return loader.reading(config, directory, say)

    def step(self, config, platform, mesh, reading):
        from gptjax.training import step

        return step.build(config, platform, mesh, reading.tokenizer.end_of_text)

    def state(self, config, step, mesh, reading, out):
        from gptjax.training import state

        now = state.created(config, step.model, step.tx, mesh)
        return now if self._init is None else begun(now, self._init, config, reading.tokenizer, out)

    def evaluation(self, session, put):
        import jax

        from gptjax.sharding import xla_options
        from gptjax.training import metrics

        held_out, per_token = session.reading.validation(session.config.loop.eval_rows), session.reading.validation_bytes_per_token
        nll = jax.jit(session.step.nll, compiler_options=xla_options.options(session.mesh.devices.flat[0]))
        return lambda params: metrics.evaluation(nll, params, held_out, session.microbatch, put, per_token)

    def said(self, session, now, step, last):
        return [spoken(session, now, step, seed) for seed in range(3 if last else 1)]


def begun(now: Any, init: str, config: Config, text: Any, out: Any) -> Any:
    """The state `now` with the parameters that lie at `init`."""
    import jax

    from gptjax.weights import load

    there = load.found(init)
    there.check(config, text)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), now.params)
    jax.tree.map(lambda x: x.delete(), now.params)  # room for those that come
    with out.working(f"reading {init}") as show:
        now = now.replace(params=there.params(wanted, lambda done, name: show(f"{done:4.0%} read: {name}")))
    out.say(f"beginning with the weights of {init}: {there.kind}")
    return now


def spoken(session: Any, now: Any, step: int, seed: int = 0) -> str:
    """A continuation of loop.sample_prompt, with the prompt; of a model of NaN a line that says so. session: a train.Session."""
    import jax

    from gptjax.generate import decode
    from gptjax.generate import sampling as choose
    from gptjax.model import inference

    text, asked = session.reading.tokenizer, session.config.loop
    prompt = text.encode(asked.sample_prompt) or [text.begin]
    with jax.transfer_guard("allow"):
        key = jax.random.fold_in(jax.random.key(seed), step)
        sampling = choose.Sampling(temperature=0.8, top_k=40)
        reader = inference.reader(session.step.model, now.params)
        try:
            (new,) = decode.continuations(reader, [prompt], asked.sample_tokens, sampling, key, text.end_of_text)
        except inference.NonFiniteLogits as error:  # the run goes on: whether it gives up is its own rule's to say
            return f"no sample: {error}"
    return text.decode([*prompt, *new])
