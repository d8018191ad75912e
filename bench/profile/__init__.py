"""Where the time of a step goes, from traces; and what Nsight Compute says of the kernels."""
