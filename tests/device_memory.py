"""An accelerator's memory, as far as JAX simulates it on CPU: the host reads arrays of devices by
jax.device_get alone, and a jitted function takes no array of the host that was not placed.

JAX's own guard lets the host read arrays of CPU devices, since those share its memory. So a program
that does fails on a GPU or TPU alone, unless the two ways to their bytes are closed, as here."""

import contextlib
import ctypes

import jax
from jax._src.array import ArrayImpl
from jax._src.lib import guard_lib

AS_BUFFER = 20 * 8  # offset of tp_as_buffer in CPython's PyTypeObject, whose first slot reads


def is_guarded():
    """Whether this thread now may not read a device's array implicitly."""
    local = guard_lib.thread_local_state()
    level = local.device_to_host or guard_lib.global_state().device_to_host
    return not local.explicit_device_get and level == guard_lib.TransferGuardLevel.DISALLOW


def set_guards(level):
    for direction in ("host_to_device", "device_to_host"):
        jax.config.update(f"jax_transfer_guard_{direction}", level)


@contextlib.contextmanager
def simulate():
    """Forbids implicit transfers between host and devices, in this thread and others; those of a
    thread within `jax.transfer_guard("allow")` are not."""
    slot = ctypes.c_void_p.from_address(
        ctypes.c_void_p.from_address(id(ArrayImpl) + AS_BUFFER).value
    )
    value, buffer = ArrayImpl._value, slot.value

    def read(array):
        if is_guarded():
            raise RuntimeError("Disallowed device-to-host transfer")
        return value.fget(array)

    ArrayImpl._value, slot.value = property(read), None
    set_guards("disallow")
    try:
        yield
    finally:
        set_guards("allow")
        ArrayImpl._value, slot.value = value, buffer
