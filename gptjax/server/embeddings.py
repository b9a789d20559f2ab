"""POST /v1/embeddings: texts as vectors.

An embedding is the mean of the last hidden states, after the final norm, of a text's tokens,
divided by its length, so that the dot product of two is the cosine of their angle. A language model
that was not trained to embed gives rough ones.
"""

import base64
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.generate import decode
from gptjax.model import activations, inference
from gptjax.server import openai_types, served_model, work
from gptjax.server.served_model import Embed, ServedModel

MAX_TEXTS = 2048  # of a request, as OpenAI's


def make_embed(lm: inference.InferenceModel) -> Embed:
    """Returns the function that embeds lists of ids, float32 (B, D). Lengths are rounded up to few,
    each compiled once."""
    n_ctx = lm.model.config.n_ctx

    def embed(texts: Any) -> np.ndarray:
        rows = []
        for ids in texts:
            work.check_canceled()
            length = decode.bucket_length(len(ids), n_ctx)
            tokens_BT = np.zeros((1, length), np.int32)
            tokens_BT[0, : len(ids)] = ids
            row = _mean_state(lm, *jax.device_put((tokens_BT, np.int32(len(ids)))))
            rows.append(jax.device_get(row))  # waits, so that what is not wanted is not begun
        return np.stack(rows)

    return embed


@jax.jit
def _mean_state(lm: inference.InferenceModel, tokens_BT: jax.Array, count: jax.Array) -> jax.Array:
    """(D,) of one row, whose first `count` tokens are the text."""
    x_TD = activations.hidden_states(lm, tokens_BT)[-1][0].astype(jnp.float32)
    is_text_T1 = (jnp.arange(x_TD.shape[0]) < count)[:, None]
    mean_D = jnp.where(is_text_T1, x_TD, 0.0).sum(0) / count.astype(jnp.float32)
    return mean_D / jnp.maximum(jnp.linalg.norm(mean_D), 1e-12)


def read_request(model: ServedModel, body: openai_types.EmbeddingRequest) -> list[tuple[int, ...]]:
    """Returns the ids of each text. Raises ApiError for those that the model cannot be given."""
    prompts = served_model.encode_prompts(model, body.input, "input")
    served_model.check_number(len(prompts), "input", MAX_TEXTS)
    for prompt in prompts:
        served_model.check_length(model, len(prompt.ids), 0, "input")
    return [prompt.ids for prompt in prompts]


def format_response(
    model: ServedModel, body: openai_types.EmbeddingRequest, n_tokens: int, vectors: np.ndarray
) -> dict[str, Any]:
    """OpenAI's list of embeddings: of vectors (B, D) as numbers, or as base64 of float32 in little-
    endian order."""
    rows = np.asarray(vectors, "<f4")
    if body.encoding_format == "base64":
        values: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in rows]
    else:
        values = rows.tolist()
    data = [
        {"object": "embedding", "index": number, "embedding": value}
        for number, value in enumerate(values)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}
