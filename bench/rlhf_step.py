"""An iteration of PPO against a plain PyTorch loop of the same model, in float32, in one process
and interleaved rounds: rollouts, log p of policy and reference, and updates.

    python -m bench.rlhf_step [--size=small,gpt2_124m] [--rounds=5]

small: the model of bench.rlhf_sentiment, 64 answers of 20 tokens to prompts of 12. gpt2_124m: 8
answers of 64 tokens to prompts of 64. The value function is a head on the policy's states; an
update reads half of the answers.

The PyTorch loop is what one writes from the papers with torch.nn.functional: a forward pass that
also takes a cache of keys and values (allocated once), torch.multinomial, log_softmax, PPO's and
the value function's clipped losses, AdamW with clipping; nothing is compiled. It begins with the
same parameters. That the same work is timed is checked: its log p of gptjax's answers, and the loss
of the first update, are gptjax's. transformers' generate() samples as well, as TRL's loop does.
Needs torch and transformers (requirements-dev.txt).
"""

import argparse
import dataclasses
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import generation, step
from gptjax.config import parse, rlhf, schema
from gptjax.model import scalar_head
from gptjax.sharding import device_mesh, xla_options
from gptjax.training import step as train_step
from gptjax.training.rlhf import rollout
from gptjax.training.rlhf import step as rlhf_step

DENSE = schema.Model(n_layers=4, n_heads=4, d_model=128, n_vocab=2048, n_ctx=64)
SIZES = {  # (model, rows, tokens of a prompt, tokens of an answer)
    "small": (DENSE, 64, 12, 20),
    "gpt2_124m": (
        dataclasses.replace(
            DENSE, n_layers=12, n_heads=12, d_model=768, n_vocab=50_257, n_ctx=1024
        ),
        8,
        64,
        64,
    ),
}
MINIBATCHES, KL_COEF = 2, 0.05
PHASES = {  # the parts of an iteration -> what they make
    "rollouts": "tokens sampled",
    "log p": "tokens read",
    "updates": "tokens read",
}


class Gptjax:
    """gptjax's programs, one for each phase."""

    def __init__(self, config: schema.Config, mesh: Any):
        base = train_step.build(config, jax.default_backend(), mesh, None)
        self.step = rlhf_step.build(base, None)
        with jax.set_mesh(mesh):
            self.state = jax.jit(self.step.init_state)()
            # Not a head of zeros, whose values would agree with any.
            key = jax.random.key(1)
            head = scalar_head.init(key, config.model.d_model, config.model.d_model**-0.5)
            self.state = self.state.replace(value={scalar_head.NAME: head})
        self.reference = jax.tree.map(jnp.copy, self.state.params)
        options = xla_options.options(jax.devices()[0])

        def jit(fn: Callable, **kwargs: Any) -> Any:
            return jax.jit(fn, compiler_options=options, **kwargs)

        task = self.step.task
        self._sample = jit(rollout.Sampler(task, self.step.model, None))
        self._log_probs = jit(self.step.states_and_log_probs)
        self._details = jit(self.step.details)
        self._minibatch = jit(self.step.minibatch)
        self._add = jit(self.step.accumulate_answers, static_argnums=4)
        self._zeros, self._update = jit(self.step.init_gradients), jit(self.step.update_nets)

    def sample(self, prompts: np.ndarray, number: int) -> rollout.Rollout:
        """Answers to prompts (B, T)."""
        keys_B = rollout.row_keys(0, jnp.int32(number), jnp.int32(0), len(prompts))
        lengths_B = jnp.full(len(prompts), prompts.shape[1], jnp.int32)
        return jax.block_until_ready(self._sample(self.state.params, prompts, lengths_B, keys_B))

    def read(self, sampled: rollout.Rollout, scores_B: np.ndarray) -> rlhf_step.Answers:
        """Log p of policy and reference, values and entropy of the answers."""
        x_BTD, log_probs_BT = self._log_probs(self.state.params, sampled)
        _, reference_BT = self._log_probs(self.reference, sampled)
        values_BT, _ = self._details(
            self.state.params, self.state.value, x_BTD, sampled, log_probs_BT
        )
        parts = sampled.tokens_BT, sampled.mask_BT, log_probs_BT, reference_BT, values_BT
        return jax.block_until_ready(rlhf_step.Answers(*parts, jnp.asarray(scores_B)))

    def update(self, answers: rlhf_step.Answers) -> list[float]:
        """The losses of the updates."""
        losses, n = [], len(answers.scores_B) // MINIBATCHES
        coef = jnp.float32(KL_COEF)
        for i in range(MINIBATCHES):
            rows = np.arange(i * n, (i + 1) * n, dtype=np.int32)
            minibatch, _ = self._minibatch(answers, jnp.zeros_like(answers.scores_B), rows, coef)
            nets = self.step.nets(self.state)
            sums = self._add(nets, self._zeros(nets), minibatch, 0, n, coef)
            self.state, metrics = self._update(self.state, sums)
            losses.append(float(metrics["loss"]))
        return losses


class Torch:
    """The plain PyTorch loop."""

    def __init__(self, ours: Gptjax, config: schema.Config):
        self.torch, self.c = importlib.import_module("torch"), config.model
        self.task, self.lr = config.task, config.train.schedule.peak_lr

        def leaf(x: Any) -> Any:
            return self.torch.tensor(np.array(x)).requires_grad_()

        params = step.reference_params(ours.state.params, self.c)
        params["wte"] = params["wte"][: self.c.n_vocab]  # without the rows of padding
        self.params = jax.tree.map(leaf, params)
        head = ours.state.value[scalar_head.NAME]
        self.head = {name: leaf(x) for name, x in head.items()}
        self.reference = jax.tree.map(lambda x: x.detach().clone(), self.params)
        self.leaves = [*jax.tree.leaves(self.params), *self.head.values()]
        self.optimizer = self.torch.optim.AdamW(self.leaves, lr=self.lr, weight_decay=0.0)

    def states(self, params: Any, tokens: Any, cache: Any = None, first: int = 0) -> Any:
        """States (B, T, D) after the last norm. cache: keys and values of all layers, filled before
        index `first`, to which those of the tokens are added."""
        F, c = self.torch.nn.functional, self.c
        B, T = tokens.shape
        x = F.embedding(tokens, params["wte"]) + params["wpe"][first : first + T]
        for i, p in enumerate(params["layers"]):
            y = F.layer_norm(x, (c.d_model,), p["ln1"]["g"], p["ln1"]["b"], c.norm_type.eps)
            qkv = (y @ p["qkv"] + p["qkv_b"]).view(B, T, 3, c.n_heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv
            if cache is not None:
                cache[i, :, :, :, first : first + T] = qkv[1:]
                k, v = cache[i, :, :, :, : first + T]
            o = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            x = x + o.transpose(1, 2).reshape(B, T, -1) @ p["out"] + p["out_b"]
            y = F.layer_norm(x, (c.d_model,), p["ln2"]["g"], p["ln2"]["b"], c.norm_type.eps)
            y = F.gelu(y @ p["up"] + p["up_b"], approximate="tanh")
            x = x + y @ p["down"] + p["down_b"]
        p = params["ln_f"]
        return F.layer_norm(x, (c.d_model,), p["g"], p["b"], c.norm_type.eps)

    def sample(self, prompts: np.ndarray) -> tuple[Any, Any]:
        """(tokens of prompts and answers, log p of the answers)."""
        torch, c, n = self.torch, self.c, self.task.answer_tokens
        with torch.inference_mode():
            tokens, (B, P) = torch.from_numpy(prompts).long(), prompts.shape
            cache = torch.zeros(c.n_layers, 2, B, c.n_heads, P + n, c.d_head)
            new, log_probs = tokens, []
            for i in range(n):
                x = self.states(self.params, new, cache, 0 if i == 0 else P + i - 1)
                log_p = torch.log_softmax(x[:, -1] @ self.params["wte"].T, -1)
                new = torch.multinomial(log_p.exp(), 1)
                log_probs.append(log_p.gather(1, new))
                tokens = torch.cat([tokens, new], 1)
            return tokens, torch.cat(log_probs, 1)

    def log_probs(self, params: Any, tokens: Any) -> tuple[Any, Any, Any]:
        """(log p (B, S) of the answers' tokens, states (B, S, D), entropies (B, S))."""
        x = self.states(params, tokens[:, :-1])[:, self.task.prompt_tokens - 1 :]
        log_p = self.torch.log_softmax(x @ params["wte"].T, -1)
        targets = tokens[:, self.task.prompt_tokens :, None]
        entropy = -(log_p.detach().exp() * log_p.detach()).sum(-1)
        return log_p.gather(2, targets)[..., 0], x, entropy

    def values(self, x: Any) -> Any:
        """Values (B, S) of states."""
        return self.head["gain"] * (x @ self.head["weight_D"]) + self.head["bias"]

    def read(self, tokens: Any) -> dict[str, Any]:
        """Log p of policy and reference, values and entropy of the answers."""
        with self.torch.inference_mode():
            log_p, x, entropy = self.log_probs(self.params, tokens)
            reference = self.log_probs(self.reference, tokens)[0]
            values = self.values(x)
        made = {"log_p": log_p, "reference": reference, "values": values, "entropy": entropy}
        return {name: x.clone() for name, x in made.items()}

    def update(self, tokens: Any, old: dict[str, Any], scores: Any) -> list[float]:
        """The losses of the updates: advantages of whole answers, PPO."""
        torch, losses = self.torch, []
        spec, n = self.task.advantage, len(scores) // MINIBATCHES
        for i in range(MINIBATCHES):
            rows = slice(i * n, (i + 1) * n)
            part = {name: x[rows] for name, x in old.items()}
            rewards = -KL_COEF * (part["log_p"] - part["reference"])
            rewards[:, -1] += scores[rows]
            advantages, later = torch.zeros_like(rewards), torch.zeros(n)
            next_value = torch.zeros(n)
            for t in reversed(range(rewards.shape[1])):
                delta = rewards[:, t] + spec.discount * next_value - part["values"][:, t]
                later = delta + spec.discount * spec.lam * later
                advantages[:, t], next_value = later, part["values"][:, t]
            returns = advantages + part["values"]
            std = advantages.var(unbiased=False).add(1e-8).sqrt()
            advantages = (advantages - advantages.mean()) / std
            log_p, x, _ = self.log_probs(self.params, tokens[rows])
            ratio = (log_p - part["log_p"]).exp()
            clipped = ratio.clamp(1 - self.task.clip, 1 + self.task.clip)
            loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
            values = self.values(x)
            near = part["values"] + (values - part["values"]).clamp(
                -spec.value_clip, spec.value_clip
            )
            errors = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
            loss = loss + spec.value_weight * 0.5 * errors.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.leaves, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses


def measure(name: str, rounds: int) -> None:
    """Prints the tokens per second of each phase, and the ratios of interleaved rounds."""
    model, n_rows, prompt_tokens, answer_tokens = SIZES[name]
    task = rlhf.Rlhf(
        prompts="-",
        reward=rlhf.RewardModel(path="-"),
        text="plain",
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        batch_rows=n_rows,
        minibatches=MINIBATCHES,
        advantage=rlhf.Gae(value=rlhf.SharedValue()),
    )
    config = dataclasses.replace(step.bench_config(model, n_rows), task=task)
    mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
    ours, draw = Gptjax(config, mesh), np.random.default_rng(0)
    theirs = Torch(ours, config)
    hf = generation.hf_model(ours.state.params, model, "float32")
    torch = theirs.torch
    n_new = n_rows * answer_tokens
    n_read = n_rows * (prompt_tokens + answer_tokens)
    tokens_of = {"rollouts": n_new, "log p": 2 * n_read, "updates": n_read}
    seconds: dict[tuple[str, str], list[float]] = {}

    def run(phase: str, who: str, fn: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        with jax.set_mesh(mesh):
            result = fn(*args)
        seconds.setdefault((phase, who), []).append(time.perf_counter() - start)
        return result

    def generate(prompts: np.ndarray) -> Any:
        with torch.inference_mode():
            ids = torch.from_numpy(prompts).long()
            return hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=answer_tokens,
                max_new_tokens=answer_tokens,
                pad_token_id=0,
            )

    for number in range(rounds + 1):
        if number == 1:
            seconds.clear()  # of the round that compiles
        shape = n_rows, prompt_tokens
        prompts = draw.integers(0, model.n_vocab, shape, dtype=np.int32)
        scores_B = draw.normal(size=n_rows).astype(np.float32)
        sampled = run("rollouts", "gptjax", ours.sample, prompts, number)
        run("rollouts", "PyTorch", theirs.sample, prompts)
        run("rollouts", "transformers", generate, prompts)
        tokens = torch.from_numpy(np.array(sampled.tokens_BT)).long()
        answers = run("log p", "gptjax", ours.read, sampled, scores_B)
        old = run("log p", "PyTorch", theirs.read, tokens)
        at = slice(prompt_tokens - 1, -1)
        gap = float(np.abs(np.asarray(answers.log_probs_BT)[:, at] - old["log_p"].numpy()).max())
        losses = run("updates", "gptjax", ours.update, answers)
        scores = torch.from_numpy(scores_B)
        their_losses = run("updates", "PyTorch", theirs.update, tokens, old, scores)
        if number == 0:
            assert gap < 1e-4, gap
            np.testing.assert_allclose(losses[0], their_losses[0], rtol=1e-3)
    print(
        f"{name}: {n_rows} answers of {answer_tokens} tokens to prompts of {prompt_tokens}, "
        f"{rounds} rounds"
    )
    for (phase, who), values in seconds.items():
        rate = tokens_of[phase] / statistics.median(values)
        line = f"  {phase:8}  {who:12} {rate:9,.0f} {PHASES[phase]} a second"
        if who != "gptjax":
            pairs = zip(seconds[phase, "gptjax"], values, strict=True)
            ratios = sorted(theirs / ours for ours, theirs in pairs)
            line += f"; gptjax {statistics.median(ratios):.2f} x"
            line += f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(line, flush=True)


def main() -> None:
    """Measures the sizes that --size names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="small,gpt2_124m", help="sizes, by commas")
    parser.add_argument("--rounds", type=parse.int_argument(), default=5, help="timed iterations")
    args = parser.parse_args()
    xla_options.tune_malloc()  # before devices start their threads, as train.py does
    for name in args.size.split(","):
        measure(name, args.rounds)


if __name__ == "__main__":
    main()
