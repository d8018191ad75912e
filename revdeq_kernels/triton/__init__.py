"""The Triton backend: steps (``half_step``), kernels, launches (``launch``), signatures (``aot``)."""
