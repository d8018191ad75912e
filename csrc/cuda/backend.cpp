// Registers the ops on CUDA.
#include "cuda/backend.h"

#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(revdeq, CUDA, m) { revdeq::register_ops<revdeq::cuda::Backend>(m); }
