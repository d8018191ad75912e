"""Run csrc/cuda on a CPU: its host code launches kernels, and the executor runs their PTX."""
