"""The Triton backend: kernels (``half_step``), launches (``launch``), signatures (``aot``)."""
