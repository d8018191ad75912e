"""The Triton backend: what a program does to its leaf, the kernels, and their launches."""
