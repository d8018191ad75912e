"""The Triton backend: ``half_step``, ``kernels``, ``launch``, and signatures (``aot``)."""
