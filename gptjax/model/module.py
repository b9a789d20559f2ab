"""A Flax module whose initializers are traced only where parameters are initialized."""

import flax.errors
import flax.linen as nn


class Module(nn.Module):
    """nn.Module, but for parameters that exist: Flax traces their initializers at each call to
    compare shapes, which takes as long as the rest of a forward pass. Here the shape that is given
    to `param` is compared."""

    @nn.nowrap
    def param(self, name, init_fn, *shape):
        """Raises flax.errors.ScopeParamShapeError if the parameter has another shape."""
        if not self.has_variable("params", name):
            return super().param(name, init_fn, *shape)
        value = self.get_variable("params", name)
        if shape and value.shape != tuple(shape[0]):
            path = "/".join(self.path)
            raise flax.errors.ScopeParamShapeError(name, path, value.shape, tuple(shape[0]))
        return value
