"""The objective of language modeling, for the training loop."""

from collections.abc import Callable
from typing import Any

from gptjax.config import continuation
from gptjax.config.model import Model


class PretrainingObjective:
    """Next-token prediction on text (GPT-1 equation 1). A training.context.Objective."""

    def __init__(self, init: str | None = None, load_weights: Callable[[str], Any] | None = None):
        """init: path of the weights that a new run starts from, which load_weights
        (weights.load.load) opens; None: parameters are drawn from the seed."""
        self._init, self._load_weights = init, load_weights

    def open_dataset(self, config, directory, log):
        from gptjax.data import open_dataset

        return open_dataset.open_dataset(config, directory, log)

    def build_step(self, config, platform, mesh, dataset):
        from gptjax.training import step

        return step.build(config, platform, mesh, dataset.tokenizer.end_of_text)

    def init_state(self, config, step, mesh, dataset, out):
        from gptjax.training import state

        init_state = state.init_sharded(config, step.model, step.tx, mesh)
        if self._init is None or self._load_weights is None:
            return init_state
        weights = self._load_weights(self._init)
        weights.check(config, dataset.tokenizer)
        with out.status(f"reading {self._init}") as progress:
            init_state = load_params(
                init_state,
                weights,
                config.model,
                lambda done, name: progress(f"{done:4.0%} read: {name}"),
            )
        out.print(f"beginning with the weights of {self._init}: {weights.kind}")
        for line in continuation.changes(weights.config.model, config.model):
            out.print(f"  {line}")
        return init_state

    def make_program(self, context, put_on_mesh):
        from gptjax.training import one_run

        return one_run.OneRun(context, put_on_mesh, self.make_eval_fn(context, put_on_mesh))

    def make_eval_fn(self, context, put_on_mesh):
        import jax

        from gptjax.sharding import xla_options
        from gptjax.training import metrics

        validation_rows, bytes_per_token = (
            context.dataset.validation_rows(context.config.loop.eval_rows),
            context.dataset.validation_bytes_per_token,
        )
        options = xla_options.options(
            context.mesh.devices.flat[0], context.step.model.execution_policy.dtype
        )
        nll = jax.jit(context.step.nll, compiler_options=options)

        def eval_fn(params):
            loss = metrics.mean_nll(
                nll, params, validation_rows, context.microbatch_rows, put_on_mesh
            )
            return metrics.loss_metrics(float(loss), bytes_per_token)

        return eval_fn

    def generate_samples(self, context, state, step, is_last):
        return [sample_text(context, state, step, seed) for seed in range(3 if is_last else 1)]


def load_params(
    state: Any, weights: Any, model: Model, progress: Callable[[float, str], None]
) -> Any:
    """Returns the state with the parameters that `read_params` returns, sharded as its own were."""
    import jax

    abstract_params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params
    )
    jax.tree.map(lambda x: x.delete(), state.params)  # makes room for those that come
    return state.replace(params=read_params(abstract_params, weights, model, progress))


def read_params(
    abstract_params: Any, weights: Any, model: Model, progress: Callable[[float, str], None]
) -> Any:
    """Returns the parameters of a weights.load.Weights, sharded as abstract_params, a tree of
    ShapeDtypeStructs; learned positions are extended or cut to those of `model`, tables of tokens
    get rows of zeros, and an output table that `model` lacks is left out. progress(fraction, name
    of the leaf) is called for each leaf."""
    import jax
    import jax.numpy as jnp

    from gptjax.model import embedding

    stored, resize = dict(abstract_params), {}
    if "position_TD" in stored and weights.config.model.n_ctx != model.n_ctx:
        stored["position_TD"] = _with_rows(stored["position_TD"], weights.config.model.n_ctx)
        resize["position_TD"] = lambda table: embedding.resize_positions(
            table, model.n_ctx, model.init.longer_positions
        )
    if model.tied_output and not weights.config.model.tied_output:  # read, and left out below
        stored["output_VD"] = stored["token_VD"]
    n_stored = weights.config.model.n_vocab_padded
    for name in {"token_VD", "output_VD"} & set(stored) if n_stored < model.n_vocab_padded else ():
        stored[name] = _with_rows(stored[name], n_stored)
        resize[name] = lambda table: jnp.pad(table, ((0, model.n_vocab_padded - n_stored), (0, 0)))
    params = weights.load_params(stored, progress)
    params = {name: params[name] for name in abstract_params}
    for name in (name for name in resize if name in params):
        fn = jax.jit(resize[name], out_shardings=abstract_params[name].sharding)
        params = params | {name: fn(params[name])}
    return params


def _with_rows(table: Any, n_rows: int) -> Any:
    """The ShapeDtypeStruct of a table with another number of rows."""
    import jax

    return jax.ShapeDtypeStruct((n_rows, *table.shape[1:]), table.dtype, sharding=table.sharding)


def sample_text(context: Any, state: Any, step: int, seed: int = 0) -> str:
    """Returns loop.sample_prompt and a continuation of it; for a model whose logits are not finite,
    a line that says so. context: a training.context.TrainContext."""
    from gptjax.data.tokenizers import build
    from gptjax.generate import decode, sampling
    from gptjax.model import inference

    tokenizer, loop = context.dataset.tokenizer, context.config.loop
    prompt = build.encode_prompt(tokenizer, loop.sample_prompt)
    key = sampling.random_key(seed, step)
    sampling_params = sampling.SamplingParams(temperature=0.8, top_k=40)
    lm = inference.prepare(context.step.model, state.params)
    try:
        (new_tokens,) = decode.generate(
            lm, [prompt], loop.sample_tokens, sampling_params, key, tokenizer.end_of_text
        )
    except inference.NonFiniteLogits as error:
        # The run goes on: whether it gives up is its own rule's to say.
        return f"no sample: {error}"
    return tokenizer.decode([*prompt, *new_tokens])
