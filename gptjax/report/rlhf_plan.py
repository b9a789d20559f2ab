"""What an iteration of learning from a reward costs, as text of at most 80 columns."""

from typing import Any

from gptjax.runtime.units import human_bytes, si, sig3


def render(p: dict[str, Any]) -> str:
    """Formats the plan of an iteration of learning from a reward."""
    rows: list[tuple[str, ...]] = [
        ("memory that stays, over all devices", "", ""),
        ("  policy: parameters, Adam", human_bytes(p["policy_state_bytes"]), ""),
        ("  value function: the same", human_bytes(p["value_state_bytes"]), ""),
        ("  running mean of the policy", human_bytes(p["ema_bytes"]), ""),
        ("  reference", human_bytes(p["reference_bytes"]), ""),
        ("  reward model", human_bytes(p["reward_bytes"]), ""),
        (),
        ("rollout", f"{p['rollout_flops']:.2e} FLOPs", f"{si(p['rollout_tokens'])} tokens at most"),
        ("  copy of the policy", human_bytes(p["sampler_bytes"]), ""),
        (
            f"  KV cache of {p['rows']} answers, {p['kv_cache_dtype']}",
            human_bytes(p["kv_cache_bytes"]),
            f"{human_bytes(p['kv_cache_bytes_per_row'])} an answer",
        ),
        (),
        ("score", f"{p['score_flops']:.2e} FLOPs", ""),
        (),
        ("update", f"{p['update_flops']:.2e} FLOPs", f"{p['minibatches']} updates"),
        ("  gradients", human_bytes(p["gradient_bytes"]), ""),
        ("  activations of a row of text", human_bytes(p["row_bytes"]), "bfloat16"),
        ("  tokens of text", si(p["ptx_tokens"]), ""),
        (),
        ("iterations", f"{p['iterations']:,}", ""),
        (
            "PF-days",
            sig3(
                p["iterations"]
                * (p["rollout_flops"] + p["score_flops"] + p["update_flops"])
                / (1e15 * 86_400)
            ),
            "",
        ),
    ]
    title = (
        f"{p['recipe']} of {p['name']}, {si(p['policy_parameters'])} parameters, reward model and "
        f"value\nfunction of {p['reward']}: an iteration of {p['rows']} answers of up to "
        f"{p['row_tokens']:,} tokens"
    )
    lines = [
        f"{pad_name(a)}{b:>17}  {c:>22}".rstrip() for a, b, c in (r or ("",) * 3 for r in rows)
    ]
    return "\n".join(
        [title, "", *lines, "", "KV cache and activations: those of a chunk are held at a time."]
    )


def pad_name(name: str) -> str:
    """The first column of a row; a name too long for it stands on a line of its own."""
    return f"{name:<37}" if len(name) < 37 else f"{name}\n{'':37}"
