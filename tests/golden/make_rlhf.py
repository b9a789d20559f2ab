"""What other programs compute of the losses of fine-tuning, stored in tests/golden/rlhf/, so that
the suite needs none of them. Each in an environment of its own, from the root of the repository:

    pip install torch==2.13.0 trl==1.16.0 && python -m tests.golden.make_rlhf trl
    pip install torch==2.13.0 trl==1.12.0 && python -m tests.golden.make_rlhf trl_ppo
    pip install rlax==0.1.9               && python -m tests.golden.make_rlhf rlax

TRL's trainers really train, at a learning rate of 0; the weights of `rlhf_inputs` are put in place
before a loss, and what is stored is the batch that TRL made, its loss, and the derivatives of the
loss: with respect to what the model says, and to its weights in the directions of `rlhf_inputs`.
tests/parity/rlhf_peers_test.py compares."""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.golden import rlhf_inputs as inputs

FOLDER = Path(__file__).parent / "rlhf"


def rounded(x):
    """Float32 with as many digits as tell it from the others, for JSON."""
    return [rounded(part) for part in x] if isinstance(x, list) else float(f"{x:.9g}")


def stored(x):
    """A tensor as lists."""
    x = x.detach().cpu()
    return rounded(x.tolist()) if x.is_floating_point() else x.long().tolist()


def load(model, seed: int) -> None:
    """Puts weights(seed) into a model of transformers, with or without a head."""
    import torch

    tensors = inputs.weights(seed)
    for name, parameter in model.named_parameters():
        parameter.data = torch.tensor(tensors[name.removeprefix("transformer.")])


def make(kind: str, seed: int):
    """A model of transformers with weights(seed)."""
    import transformers

    settings = {k: v for k, v in inputs.CONFIG.items() if k != "model_type"} | {"num_labels": 1}
    model = getattr(transformers, kind)(transformers.GPT2Config(**settings))
    load(model, seed)
    return model


def make_tokenizer():
    """Of the words w0, w1, ..."""
    import tokenizers
    import transformers

    ids = {f"w{i}": i for i in range(inputs.END)} | {"<end>": inputs.END, "<pad>": inputs.PAD}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<pad>"
    )


def gradient(loss, x):
    """The gradient of a loss with respect to a tensor that it was computed from."""
    import torch

    return stored(torch.autograd.grad(loss, x, retain_graph=True)[0])


def slopes(loss, model) -> list[float]:
    """The derivatives of a loss in the directions. model: of transformers."""
    import torch

    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
    out = []
    for seed in inputs.DIRECTIONS:
        along = inputs.direction(seed)
        parts = [
            (g.double() * torch.tensor(along[n.removeprefix("transformer.")]).double()).sum()
            for n, g in zip(named, gradients, strict=True)
        ]
        out.append(float(sum(parts)))
    return rounded(out)


def args(kind, **values):
    """Those of a trainer that changes nothing."""
    usual = {"output_dir": tempfile.mkdtemp(), "report_to": [], "save_strategy": "no"}
    usual |= {"learning_rate": 0.0, "use_cpu": True, "bf16": False, "disable_tqdm": True}
    return kind(**(usual | values))


def capture(trainer, method: str, output: str = "log_probs"):
    """Trains; returns the last batch on which `method`(model, batch, ...) was called, with its
    loss, its gradient with respect to the model's `output`, and its slopes, the weights then being
    weights(NOW)."""
    compute, found, outputs = getattr(trainer, method), [], []

    def wrapped(model, batch, *rest, **more):
        load(model, inputs.NOW)
        tensors = {k: stored(v) for k, v in batch.items() if hasattr(v, "detach")}
        hook = model.register_forward_hook(lambda _, __, out: outputs.append(out[output]))
        loss = compute(model, batch, *rest, **more)
        hook.remove()
        tensors |= {"loss": stored(loss), "slopes": slopes(loss, model)}
        found.append(tensors | {"gradient": gradient(loss, outputs[-1])})
        return loss

    setattr(trainer, method, wrapped)
    trainer.train()
    return found[-1]


# --- TRL 1.16: SFT, reward model, DPO, GRPO, RLOO -------------------------------------------------


def trl():
    import datasets
    import trl as t

    prompts = inputs.texts(4, 10, 2, 5)
    good, bad = inputs.texts(4, 11, 1, 6), inputs.texts(4, 12, 1, 6)
    pairs = datasets.Dataset.from_list(
        [
            {
                "prompt": inputs.words(p),
                "chosen": " " + inputs.words(a),
                "rejected": " " + inputs.words(b),
            }
            for p, a, b in zip(prompts, good, bad, strict=True)
        ]
    )
    usual = {"per_device_train_batch_size": 4, "max_steps": 1, "max_length": inputs.N_CTX}
    common = {"processing_class": make_tokenizer()}
    conversations = pairs.remove_columns("rejected").rename_column("chosen", "completion")
    out = {
        "sft": capture(
            t.SFTTrainer(
                make("GPT2LMHeadModel", inputs.NOW),
                args(t.SFTConfig, completion_only_loss=True, **usual),
                train_dataset=conversations,
                **common,
            ),
            "compute_loss",
        ),
        "reward": capture(
            t.RewardTrainer(
                make("GPT2ForSequenceClassification", inputs.NOW),
                args(t.RewardConfig, **usual),
                train_dataset=pairs,
                **common,
            ),
            "compute_loss",
            output="logits",
        ),
        "dpo": capture(
            t.DPOTrainer(
                make("GPT2LMHeadModel", inputs.NOW),
                make("GPT2LMHeadModel", inputs.REFERENCE),
                args(t.DPOConfig, beta=inputs.BETA, **usual),
                train_dataset=pairs,
                **common,
            ),
            "_compute_loss",
        ),
    }
    shared = {"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 2}
    shared |= {"max_completion_length": inputs.ANSWER_TOKENS, "num_iterations": 2, "seed": 3}
    shared |= {"beta": inputs.BETA, "temperature": inputs.TEMPERATURE}
    grpo = {
        "grpo": {"loss_type": "grpo"},
        "grpo_bnpo": {"loss_type": "bnpo"},
        "grpo_dapo": {"loss_type": "dapo"},
        "grpo_without_deviation": {"loss_type": "grpo", "scale_rewards": "none"},
    }
    for name, settings in grpo.items():
        out[name] = sampled(
            t.GRPOTrainer,
            args(t.GRPOConfig, use_bias_correction_kl=False, **shared, **settings),
            common,
        )
    out["rloo"] = sampled(
        t.RLOOTrainer, args(t.RLOOConfig, epsilon=inputs.RLOO_CLIP, **shared), common
    )
    return out


def prompts_of(n: int):
    """A data set of prompts of one length, as left padding moves GPT-2's positions in TRL's GRPO
    and RLOO."""
    import datasets

    size = inputs.PROMPT_TOKENS
    return datasets.Dataset.from_list(
        [{"prompt": inputs.words(ids)} for ids in inputs.texts(n, 20, size, size + 1)]
    )


def sampled(kind, settings, common):
    """The second of the updates of some answers, which weights(OLD) sampled."""

    def reward(completion_ids, **_):
        return [inputs.score(ids) for ids in completion_ids]

    policy, folder = make("GPT2LMHeadModel", inputs.OLD), tempfile.mkdtemp()
    make("GPT2LMHeadModel", inputs.REFERENCE).save_pretrained(folder)
    policy.config._name_or_path = folder  # from which the reference is read
    trainer = kind(policy, reward, args=settings, train_dataset=prompts_of(2), **common)
    return capture(trainer, "_compute_loss")


# --- TRL 1.12: PPO --------------------------------------------------------------------------------


def trl_ppo():
    return {"ppo": ppo(whiten_rewards=False), "ppo_with_whitened_rewards": ppo(whiten_rewards=True)}


def ppo(**settings):
    """The second epoch of PPO on some answers, which weights(OLD) sampled, as its locals are when
    it calls backward."""
    from trl.experimental import ppo as t

    data = prompts_of(8).map(
        lambda row: {"input_ids": [int(w[1:]) for w in row["prompt"].split()]},
        remove_columns="prompt",
    )
    trainer = t.PPOTrainer(
        args(
            t.PPOConfig,
            per_device_train_batch_size=8,
            num_mini_batches=1,
            num_ppo_epochs=2,
            total_episodes=8,
            response_length=inputs.ANSWER_TOKENS,
            temperature=inputs.TEMPERATURE,
            kl_coef=inputs.BETA,
            num_sample_generations=0,
            seed=3,
            **settings,
        ),
        make_tokenizer(),
        make("GPT2LMHeadModel", inputs.OLD),
        make("GPT2LMHeadModel", inputs.REFERENCE),
        make("GPT2ForSequenceClassification", inputs.REFERENCE),
        data,
        make("GPT2ForSequenceClassification", inputs.VALUE),
    )
    found = []

    def backward(loss):
        seen = sys._getframe(1).f_locals
        if seen["ppo_epoch_idx"] == 0:  # ratios are 1
            load(trainer.model.policy, inputs.NOW)
            load(trainer.model.value_model, inputs.OLD)
            return
        names = {"query_responses": "tokens", "scores": "scores", "rewards": "rewards"}
        names |= {"advantages": "advantages", "returns": "returns", "values": "values"}
        names |= {"logprobs": "log_probs", "ref_logprobs": "reference"}
        names |= {"pg_loss": "policy_loss", "vf_loss": "value_loss", "loss": "loss"}
        names |= {"vf_clipfrac": "value_clip_fraction"}
        assert not seen["padding_mask"].any()
        out = {ours: stored(seen[theirs]) for theirs, ours in names.items()}
        order = np.argsort(seen["micro_batch_inds"])  # an epoch shuffles the answers
        out["gradient"] = [gradient(loss, seen["new_logprobs"])[i] for i in order]
        out["value_gradient"] = [gradient(loss, seen["vpred"])[i] for i in order]
        out["slopes"] = slopes(loss, trainer.model.policy)
        out["value_slopes"] = slopes(loss, trainer.model.value_model)
        found.append(out)

    trainer.accelerator.backward = backward
    trainer.train()
    return found[-1]


# --- rlax -----------------------------------------------------------------------------------------


def rlax():
    """One answer of random numbers: rlax's functions are of one sequence."""
    import jax
    import rlax as r

    def clipped_loss(log_probs, old, advantages):
        return r.clipped_surrogate_pg_loss(jax.numpy.exp(log_probs - old), advantages, inputs.CLIP)

    draw, n, out = np.random.RandomState(30), inputs.ANSWER_TOKENS, {}
    rewards, values, advantages = draw.randn(3, n).astype(np.float32)
    log_probs = (-3 + draw.randn(n)).astype(np.float32)
    old = (log_probs + 0.2 * draw.randn(n)).astype(np.float32)
    out |= {"rewards": rewards, "values": values, "advantages": advantages}
    out |= {"log_probs": log_probs, "old": old}
    ahead = np.append(values, np.float32(0))
    for discount, lam in ((1.0, 0.95), (0.9, 0.5)):
        discounts = np.full(n, discount, np.float32)
        out[f"gae {discount} {lam}"] = r.truncated_generalized_advantage_estimation(
            rewards, discounts, lam, ahead
        )
    loss, gradient = jax.value_and_grad(clipped_loss)(log_probs, old, advantages)
    out |= {"loss": loss, "gradient": gradient}
    return {"one answer": {name: rounded(np.asarray(x).tolist()) for name, x in out.items()}}


PACKAGES = {"trl": ("trl", "transformers", "torch"), "rlax": ("rlax", "jax")}
PACKAGES["trl_ppo"] = PACKAGES["trl"]


if __name__ == "__main__":
    name = sys.argv[1]
    versions = {p: importlib.metadata.version(p) for p in PACKAGES[name]}
    found = {"command": f"python -m tests.golden.make_rlhf {name}", "versions": versions}
    found |= globals()[name]()
    FOLDER.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(part)}" for key, part in found.items()]
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
