"""A whole Config for weights that say only which model they are: the recipe that has it, and the
tokenizer that lies in their folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import overrides, schema
from gptjax.configs import registry
from gptjax.weights import tokenizer_files


def match_recipe(model: schema.Model, recipe: str, name: str) -> schema.Config:
    """Returns the registry's config with this model, or else `recipe` with its sizes and the
    recipe's number of rows per batch.
    """
    for candidate in registry.config_names():
        found_config = registry.config(candidate)
        if dataclasses.replace(found_config.model, init=model.init) == model:
            break
    else:
        found_config = registry.config(recipe)
        rows, ramp = found_config.model.n_ctx, found_config.train.batch_ramp
        scaled = ramp and dataclasses.replace(
            ramp, start_tokens=ramp.start_tokens // rows * model.n_ctx
        )
        train = dataclasses.replace(
            found_config.train,
            batch_tokens=found_config.batch_rows * model.n_ctx,
            batch_ramp=scaled,
        )
        found_config = dataclasses.replace(
            found_config,
            name=name,
            model=dataclasses.replace(model, init=found_config.model.init),
            train=train,
        )
    return found_config


def with_tokenizer(
    config: schema.Config, folder: Path, assignments: Sequence[str]
) -> schema.Config:
    """Returns the config with the tokenizer in the folder, `assignments`, and that tokenizer's
    number of ids if the table has more rows.
    """
    tokenizer = tokenizer_files.detect_tokenizer(folder, config.data.tokenizer)
    new_config = overrides.override(
        dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer)),
        *assignments,
    )
    n = tokenizer_files.published_size(folder, new_config.data.tokenizer)
    if n is None or not n < new_config.model.n_vocab == config.model.n_vocab:
        return new_config
    return dataclasses.replace(new_config, model=dataclasses.replace(new_config.model, n_vocab=n))
