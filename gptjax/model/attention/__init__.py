"""One definition of attention, and several kernels that compute it."""
