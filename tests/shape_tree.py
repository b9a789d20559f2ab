"""The shape tree of a model's parameters: what a model has, and what all counts are made of."""

from gptjax.config import parameter_shapes
from gptjax.sharding import trees


def leaves(variables) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of the parameters of a model, or of their shapes."""
    return {name: leaf.shape for name, leaf in trees.named_leaves(variables["params"])}


def expected_leaves(model) -> dict[str, tuple[int, ...]]:
    """The shape tree, with the layers stacked as model/gpt.py stacks them."""
    shapes = {
        name: (model.n_vocab_padded, *shape[1:]) if name in ("token_VD", "output_VD") else shape
        for name, shape in parameter_shapes.tables(model).items()
    } | parameter_shapes.final_norm(model)
    for path, shape in parameter_shapes.layer_shapes(model).items():
        for i in range(len(model.attention) if model.n_periods else 0):
            shapes[f"periods/block_{i}/{path}"] = (model.n_periods, *shape)
        for i in range(model.n_remainder):
            shapes[f"remainder/block_{i}/{path}"] = shape
    return shapes
