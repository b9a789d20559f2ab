"""Learning of text, as gptjax.train's loop asks for it."""

from typing import Any

from gptjax.config.schema import Config


class PretrainingObjective:
    """Learning of text: GPT-1 equation 1. A train.Objective."""

    def __init__(self, init: str | None = None):
        """init: where the weights lie that a run begins with; None: they are drawn from the seed."""
        self._init = init

    def open_dataset(self, config, directory, log):
        from gptjax.data import loader

        return loader.open_dataset(config, directory, log)

    def build_step(self, config, platform, mesh, dataset):
        from gptjax.training import step

        return step.build(config, platform, mesh, dataset.tokenizer.end_of_text)

    def init_state(self, config, step, mesh, dataset, out):
        from gptjax.training import state

        init_state = state.init_sharded(config, step.model, step.tx, mesh)
        return init_state if self._init is None else load_init_weights(init_state, self._init, config, dataset.tokenizer, out)

    def make_eval_fn(self, context, put_on_mesh):
        import jax

        from gptjax.sharding import xla_options
        from gptjax.training import metrics

        validation_rows, bytes_per_token = (
            context.dataset.validation_rows(context.config.loop.eval_rows),
            context.dataset.validation_bytes_per_token,
        )
        nll = jax.jit(context.step.nll, compiler_options=xla_options.options(context.mesh.devices.flat[0]))
        return lambda params: metrics.evaluate(nll, params, validation_rows, context.microbatch_rows, put_on_mesh, bytes_per_token)

    def generate_samples(self, context, state, step, is_last):
        return [sample_text(context, state, step, seed) for seed in range(3 if is_last else 1)]


def load_init_weights(state: Any, init: str, config: Config, tokenizer: Any, out: Any) -> Any:
    """The state with the parameters that lie at `init`."""
    import jax

    from gptjax.weights import load

    weights = load.load(init)
    weights.check(config, tokenizer)
    abstract_params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params)
    jax.tree.map(lambda x: x.delete(), state.params)  # room for those that come
    with out.status(f"reading {init}") as progress:
        state = state.replace(params=weights.load_params(abstract_params, lambda done, name: progress(f"{done:4.0%} read: {name}")))
    out.print(f"beginning with the weights of {init}: {weights.kind}")
    return state


def sample_text(context: Any, state: Any, step: int, seed: int = 0) -> str:
    """A continuation of loop.sample_prompt, with the prompt; of a model of NaN a line that says so. context: a train.TrainContext."""
    import jax

    from gptjax.generate import decode, sampling
    from gptjax.model import inference

    tokenizer, loop = context.dataset.tokenizer, context.config.loop
    prompt = tokenizer.encode(loop.sample_prompt) or [tokenizer.start_of_text]
    with jax.transfer_guard("allow"):
        key = jax.random.fold_in(jax.random.key(seed), step)
        sampling_params = sampling.SamplingParams(temperature=0.8, top_k=40)
        lm = inference.prepare(context.step.model, state.params)
        try:
            (new_tokens,) = decode.generate(lm, [prompt], loop.sample_tokens, sampling_params, key, tokenizer.end_of_text)
        except inference.NonFiniteLogits as error:  # the run goes on: whether it gives up is its own rule's to say
            return f"no sample: {error}"
    return tokenizer.decode([*prompt, *new_tokens])
