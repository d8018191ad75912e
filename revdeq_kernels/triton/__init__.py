"""The Triton backend: ``half_step``, ``kernels`` and ``launch``."""
