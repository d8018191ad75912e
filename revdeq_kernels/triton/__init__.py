"""The Triton backend: device functions (one program, one leaf), kernels, and launches."""
