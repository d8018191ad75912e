// Fused multiply-adds of float32 in registers alone, as many as this core issues.

#if defined(__AVX512F__)
enum { BYTES = 64, CHAINS = 16 };
#elif defined(__AVX__)
enum { BYTES = 32, CHAINS = 12 };
#else
enum { BYTES = 16, CHAINS = 12 };
#endif
enum { LANES = BYTES / sizeof(float) };
typedef float vector __attribute__((vector_size(BYTES)));

// Chains that do not wait for each other hide the latency of one; all of them fit the registers.
// Returns how many additions and multiplications were done.
long long multiply_add(long long rounds, float* out) {
  const vector half = (vector){} + 0.5f, one = (vector){} + 1.0f;
  vector chains[CHAINS];
  for (int i = 0; i < CHAINS; ++i) chains[i] = one * (float)(i + 3);  // 2 would stay 2
  for (long long round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) chains[i] = chains[i] * half + one;
  }
  vector sum = chains[0];
  for (int i = 1; i < CHAINS; ++i) sum += chains[i];
  *out = sum[0];
  return rounds * CHAINS * LANES * 2;
}
