"""The kernels that are launched."""
