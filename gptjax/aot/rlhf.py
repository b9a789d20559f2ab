"""Compiles the programs of an iteration of learning from a reward, as training runs them, for chips
that are not present: their memory, with all that stays there, and an estimate of their time.

The three programs of the report are rollout, score and update. The small functions between them,
of arrays (B, T) alone, are not compiled.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.aot import compile, hlo_cost, step_time
from gptjax.config import count, rlhf, rlhf_recipe, schema
from gptjax.model import gpt, inference
from gptjax.runtime import errors
from gptjax.runtime.units import human_bytes
from gptjax.sharding import device_mesh, rules, topology
from gptjax.training import reward as reward_training
from gptjax.training import state as train_state
from gptjax.training import step as train_step
from gptjax.training.rlhf import functions, rewards, rollout
from gptjax.training.rlhf.step import Answers, RlhfStep

ADVICE = {
    "rollout": "lower microbatch_rows, raise mesh.tensor, which shards the sampler's copy of "
    "the policy, set compute.kv_cache_dtype=int8, or give more chips",
    "score": "lower microbatch_rows, or give more chips",
    "update": "lower microbatch_rows, set compute.remat=full, or give more chips",
}
# The ids do not matter to what is compiled.
END_OF_TEXT = END_TOKEN = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledFunction:
    """A compiled function of an iteration. phase: rollout, score or update. times: in an iteration.

    Bytes and FLOPs are of a chip. besides_bytes: of arrays of the iteration that are there while it
    runs; new_bytes: of its temporaries and results; code_bytes: of its code, which stays. flops: of
    one run, by formula; attention_flops: those of splash kernels, if it has any."""

    phase: str
    name: str
    times: int
    besides_bytes: int
    new_bytes: int
    code_bytes: int
    flops: float
    attention_flops: float
    program: hlo_cost.Program
    mesh: jax.sharding.Mesh
    target: topology.Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledIteration:
    """The compiled functions of an iteration. resident: bytes of a chip that stay whatever runs, by
    what they are. cache_bytes, sampler_bytes: of the sampler's KV cache and of its copy of the
    policy, on a chip."""

    config: schema.Config
    reward_config: schema.Config
    target: topology.Topology
    mesh: jax.sharding.Mesh
    chunk_rows: int
    text_chunk_rows: int
    resident: dict[str, int]
    sampler_bytes: int
    cache_bytes: int
    functions: tuple[CompiledFunction, ...]
    compile_seconds: float

    @property
    def task(self) -> rlhf.Rlhf:
        """The task of the config."""
        assert isinstance(self.config.task, rlhf.Rlhf)
        return self.config.task


def resolve_config(recipe: rlhf_recipe.RlhfRecipe, pretrained: schema.Config) -> schema.Config:
    """Returns the config of a run of a recipe with mesh and compute of the pre-trained config,
    which training is given with --set."""
    recipe = dataclasses.replace(recipe, compute=pretrained.compute, mesh=pretrained.mesh)
    return rlhf_recipe.resolve_config(recipe, pretrained, pretrained.data, pretrained.model.n_vocab)


def compile_iteration(
    config: schema.Config,
    reward_config: schema.Config,
    target: topology.Topology,
    log: Callable[[str], None],
) -> CompiledIteration:
    """Compiles the functions of an iteration. config: of the run (`resolve_config`); reward_config:
    of the reward model, which a separate value function begins with. log: prints a line.

    Raises ValueError if the mesh does not fit models, rows or chips, or the compiler is not
    installed; MemoryError if what stays is too large or the compiler rejects a program for its
    size."""
    mesh = device_mesh.make_mesh(config.mesh, target.devices())
    reward_config = dataclasses.replace(reward_config, mesh=config.mesh)
    rules.check(config, mesh)
    rules.check(reward_config, mesh)
    with topology.disable_cache(), jax.set_mesh(mesh):
        return _Compiler(config, reward_config, target, mesh, log).run()


def cast(model: gpt.GPT, params: Any) -> Any:
    """Abstract parameters as training keeps those that do not learn (inference.cast_weights)."""
    dtype = model.execution_policy.dtype
    shapes = jax.eval_shape(lambda p: inference.cast_weights(p, dtype), params)
    return jax.tree.map(lambda x, y: x.update(dtype=y.dtype), params, shapes)


class _Compiler:
    def __init__(self, config, reward_config, target, mesh, log):
        self.config, self.reward_config, self.log = config, reward_config, log
        self.target, self.mesh = target, mesh
        self.start_time = time.perf_counter()
        self.task = config.task
        base = train_step.build(config, target.platform, mesh, END_OF_TEXT)
        self.has_reward_model = isinstance(self.task.reward, rlhf.RewardModel)
        reward_step = reward_training.build(reward_config, target.platform, mesh, END_OF_TEXT)
        self.reward_model = reward_step.model
        self.value_config, value_model = None, None
        match self.task.advantage:
            case rlhf.Gae(value=rlhf.SeparateValue()):
                self.value_config = reward_config if self.has_reward_model else config
                value_model = self.reward_model if self.has_reward_model else base.model
        self.step = RlhfStep(base.config, base.model, base.tx, base.end_of_text, value_model)
        self.state = self.step.abstract_state(mesh)
        reward_params = train_state.abstract(
            lambda: train_state.init_params(self.reward_model, 0), reward_config, mesh
        )
        self.reward_params = cast(self.reward_model, reward_params)
        self.reference = cast(base.model, self.state.params)
        self.functions: list[CompiledFunction] = []

    def run(self) -> CompiledIteration:
        self.resident = self._resident()
        over = sum(self.resident.values()) - self.target.chip.hbm_bytes
        if over > 0:
            raise MemoryError(
                f"what stays in memory while {self.config.name} runs is {human_bytes(over)} over "
                f"the memory of each chip of {self.target}: give more chips"
            )
        self.fns = functions.Functions(self.step, self.mesh, END_TOKEN, self._max_rows())
        self._compile_rollout_and_score()
        self._compile_update()
        sampler, cache = self._sampler_arrays()
        return CompiledIteration(
            config=self.config,
            reward_config=self.reward_config,
            target=self.target,
            mesh=self.mesh,
            chunk_rows=self.fns.chunk_rows,
            text_chunk_rows=self.fns.text_chunk_rows,
            resident=self.resident | {"programs": sum(fn.code_bytes for fn in self.functions)},
            sampler_bytes=self.stored_bytes(sampler),
            cache_bytes=self.stored_bytes(cache),
            functions=tuple(self.functions),
            compile_seconds=time.perf_counter() - self.start_time,
        )

    # --- memory -----------------------------------------------------------------------------------

    def stored_bytes(self, tree: Any) -> int:
        """Bytes of a chip that arrays take, with the padding of their layouts."""
        if not jax.tree.leaves(tree):
            return 0
        fn = jax.jit(lambda tree: np.float32(0), keep_unused=True)
        compiled = fn.trace(tree).lower(lowering_platforms=(self.target.platform,)).compile()
        stats: Any = compiled.memory_analysis()
        return stats.argument_size_in_bytes

    def _resident(self) -> dict[str, int]:
        s, task = self.state, self.task
        N, T = task.batch_rows, task.row_tokens
        numbers = [self.rows((N, T), np.float32)] * 4 + [self.rows((N, T), np.int32)]
        if task.ptx is not None:
            n_text = N * task.ptx.rows_per_answer
            numbers.append(self.rows((n_text, self.config.model.n_ctx + 1), np.int32))
        policy = self.stored_bytes(s.params)
        return {
            "policy": policy,
            "policy_optimizer": self.stored_bytes(s.opt_state["policy"]),
            "value": self.stored_bytes(s.value),
            "value_optimizer": self.stored_bytes(s.opt_state.get("value")),
            "ema": policy if task.ema is not None else 0,
            "reference": self.stored_bytes(self.reference),
            "reward": self.stored_bytes(self.reward_params) if self.has_reward_model else 0,
            "answers_and_text": self.stored_bytes(numbers),
        }

    def _max_rows(self) -> int:
        """Rows whose activations fit, as training.microbatches finds them."""
        if self.config.train.microbatch_rows is not None:
            return self.config.train.microbatch_rows
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        budget = count.activation_budget(
            self.config.model,
            self.target.chip.hbm_bytes,
            sum(self.resident.values()),
            self.mesh.size // self.mesh.shape["data"],
        )
        return train_step.max_microbatch_rows(
            self.config, self.step.model.execution_policy, self.mesh, shards, budget
        )

    # --- arrays -----------------------------------------------------------------------------------

    def rows(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array whose rows are shared by the devices."""
        spec = self.step.model.sharding.spec("B1"[: len(shape)], shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def replicate(self, tree: Any) -> Any:
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def like_rows(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: self.rows(x.shape, x.dtype), tree)

    def _sampler_arrays(self) -> tuple[Any, Any]:
        """The sampler's copy of the policy, and its KV cache."""
        sharding = self.step.model.sharding.of_rows()
        n, task = self.fns.chunk_rows, self.task

        def begin(params, tokens_BT, lengths_B):
            lm = inference.prepare(self.step.model, params, sharding)
            return lm.params, inference.prefill(lm, tokens_BT, lengths_B, task.row_tokens)[0]

        params, cache = jax.eval_shape(
            begin,
            self.state.params,
            self.rows((n, task.prompt_tokens), np.int32),
            self.rows((n,), np.int32),
        )
        if sharding.mesh is None:
            return self.replicate((params, cache))
        placed = rules.shardings(params, sharding.rules, self.mesh)
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, placed
        )

        def place(x):
            spec = sharding.spec("BN11"[: x.ndim], x.shape)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))

        return params, jax.tree.map(place, cache)

    # --- programs ---------------------------------------------------------------------------------

    def add(
        self,
        phase: str,
        name: str,
        times: int,
        fn: Callable,
        args: tuple,
        *,
        besides: Any = (),
        flops: float,
        attention_flops: float,
    ) -> Any:
        """Compiles fn(*args) and returns its results as abstract arrays. besides: arrays that are
        there, neither resident nor results of `fn`. flops: of all chips."""
        self.log(f"compiling {phase}: {name}")
        lowered = fn.trace(*args).lower(lowering_platforms=(self.target.platform,))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if not compile.is_out_of_memory(error):
                raise
            raise MemoryError(
                f"the {phase} does not fit, says the compiler of {name}: "
                f"{errors.first_line(error)}; {ADVICE[phase]}"
            ) from error
        stats: Any = compiled.memory_analysis()
        new = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        n = self.mesh.size
        self.functions.append(
            CompiledFunction(
                phase=phase,
                name=name,
                times=times,
                besides_bytes=self.stored_bytes(besides),
                new_bytes=new,
                code_bytes=stats.generated_code_size_in_bytes,
                flops=flops / n,
                attention_flops=attention_flops / n,
                program=hlo_cost.Program(compiled.as_text() or ""),
                mesh=self.mesh,
                target=self.target,
            )
        )
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            lowered.out_info,
            compiled.output_shardings,
        )

    def cost(
        self, config: schema.Config | None, rows: int, n_tokens: int, has_backward: bool = False
    ) -> dict[str, float]:
        """FLOPs of a pass of rows through a model; none without one."""
        if config is None:
            return {"flops": 0.0, "attention_flops": 0.0}
        model = dataclasses.replace(config.model, n_ctx=n_tokens)
        flops = rows * n_tokens * count.forward_flops_per_token(model) * (3 if has_backward else 1)
        forward = 2 if has_backward and "attention" not in config.compute.saved_names else 1
        attention = 0.0
        if self.target.platform == "tpu":
            attention = step_time.row_attention_flops(model, n_tokens, forward, has_backward)
        return {"flops": flops, "attention_flops": rows * attention}

    def _compile_rollout_and_score(self) -> None:
        fns, task, s = self.fns, self.task, self.state
        n, T = fns.chunk_rows, task.row_tokens
        times = task.batch_rows // n
        keys_B = self.replicate(jax.eval_shape(lambda: rollout.row_keys(0, 0, 0, n)))
        prompts = self.rows((n, task.prompt_tokens), np.int32), self.rows((n,), np.int32)
        sampled = self.add(
            "rollout", "sample", times, fns.sample, (s.params, *prompts, keys_B), besides=prompts,
            flops=self.cost(self.config, n, T)["flops"],
            attention_flops=self.cost(self.config, n, task.prompt_tokens)["attention_flops"],
        )  # fmt: skip
        # Of the policy, with its copy there, and of the reference, with the policy's states.
        x_BTD, log_probs_BT = self.add(
            "score", "log p", 2 * times, fns.log_probs, (self.reference, sampled),
            besides=(sampled, self.reference), **self.cost(self.config, n, T),
        )  # fmt: skip
        values = self.cost(self.value_config, n, T)
        values["flops"] += n * T * count.logits_flops(self.config.model)  # the entropy
        self.add(
            "score", "values", times, fns.details,
            (s.params, s.value, x_BTD, sampled, log_probs_BT),
            besides=(sampled, x_BTD, log_probs_BT, log_probs_BT), **values,
        )  # fmt: skip
        if self.has_reward_model:
            scores = rewards.jit_scores(self.reward_model, self.mesh)
            self.add(
                "score", "reward", times, scores,
                (self.reward_params, sampled.tokens_BT, sampled.first_B), besides=sampled,
                **self.cost(self.reward_config, n, T),
            )  # fmt: skip

    def _compile_update(self) -> None:
        fns, task, step = self.fns, self.task, self.step
        s, n, T = self.state, fns.chunk_rows, task.row_tokens
        nets = step.nets(s)
        kl_coef, first = s.kl_coef, self.replicate(jax.ShapeDtypeStruct((), np.int32))
        N = task.batch_rows
        of_batch, row_B = self.rows((N, T), np.float32), self.rows((N,), np.float32)
        answers = Answers(
            self.rows((N, T), np.int32), of_batch, of_batch, of_batch, of_batch, row_B
        )
        minibatch, _ = jax.eval_shape(
            step.minibatch, answers, row_B,
            jax.ShapeDtypeStruct((fns.minibatch_rows,), np.int32), kl_coef,
        )  # fmt: skip
        minibatch = self.like_rows(minibatch)
        shapes = jax.eval_shape(step.init_gradients, nets)
        gradients = jax.tree.map(
            lambda x, net: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=net.sharding),
            shapes.gradients, nets,
        )  # fmt: skip
        sums = self.replicate(shapes).replace(gradients=gradients)
        updates = task.minibatches * task.inner_epochs
        policy, value = (
            self.cost(c, n, T, has_backward=True) for c in (self.config, self.value_config)
        )
        self.add(
            "update", "gradients", updates * (fns.minibatch_rows // n), fns.add_answers,
            (nets, sums, minibatch, first, n, kl_coef), besides=(sums, minibatch),
            **{name: policy[name] + value[name] for name in policy},
        )  # fmt: skip
        if task.ptx is not None:
            rows, n_ctx = fns.text_chunk_rows, self.config.model.n_ctx
            text = self.rows((rows, n_ctx + 1), np.int32)
            self.add(
                "update", "gradients of text", updates * (fns.text_rows // rows), fns.add_text,
                (nets, sums, text, fns.text_rows), besides=(sums, minibatch, text),
                **self.cost(self.config, rows, n_ctx, has_backward=True),
            )  # fmt: skip
        self.add(
            "update", "optimizer", updates, fns.update, (s, sums), besides=sums,
            flops=0.0, attention_flops=0.0,
        )  # fmt: skip
