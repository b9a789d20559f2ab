"""What the losses of fine-tuning are compared on: the weights of tiny GPT-2 models, directions to
take derivatives in, and data. In NumPy, whose RandomState draws the same numbers for ever."""

import numpy as np

END, PAD, N_VOCAB, D_MODEL, N_CTX = 59, 60, 61, 16, 12
PROMPT_TOKENS, ANSWER_TOKENS, BETA, TEMPERATURE = 4, 6, 0.3, 0.7
CLIP, RLOO_CLIP = 0.2, 0.6  # ratios of whole answers are further from 1
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": N_VOCAB,
    "n_positions": N_CTX,
    "n_embd": D_MODEL,
    "n_layer": 2,
    "n_head": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
SCORE = "score.weight"  # of a scalar head


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the model, as transformers names them."""
    D, out = D_MODEL, {"wte.weight": (N_VOCAB, D_MODEL), "wpe.weight": (N_CTX, D_MODEL)}
    for layer in range(CONFIG["n_layer"]):
        block = {"ln_1": (D,), "attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D)}
        block |= {"ln_2": (D,), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}
        for name, shape in block.items():
            out[f"h.{layer}.{name}.weight"] = shape
            out[f"h.{layer}.{name}.bias"] = shape[-1:]
    return out | {"ln_f.weight": (D,), "ln_f.bias": (D,), SCORE: (1, D)}


def direction(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Normal numbers in the shapes of the model's tensors."""
    draw = np.random.RandomState(seed)
    return {n: (scale * draw.randn(*shape)).astype(np.float32) for n, shape in shapes().items()}


def weights(seed: int) -> dict[str, np.ndarray]:
    """A model whose logits differ from each other; of two seeds, near each other, so that some
    ratios of probabilities are clipped and others not."""
    first, own = direction(0, 0.3), direction(seed, 0.012)
    is_gain = {n: n.split(".")[-2].startswith("ln") and n.endswith("weight") for n in first}
    return {n: is_gain[n] + first[n] + own[n] for n in first}


DIRECTIONS = (101, 102, 103)
NOW, OLD, REFERENCE, VALUE = 1, 2, 3, 4  # seeds of weights


def words(ids) -> str:
    """Text of which `ids` are the tokens."""
    return " ".join(f"w{i}" for i in ids)


def texts(n: int, seed: int, low: int, high: int) -> list[list[int]]:
    """n texts of low to high - 1 ids, none of them END or PAD."""
    draw = np.random.RandomState(seed)
    return [draw.randint(0, END, draw.randint(low, high)).tolist() for _ in range(n)]


def score(answer) -> float:
    """The reward of the ids of an answer."""
    return sum(answer) / 60 - len(answer) / 3
