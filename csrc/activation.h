// The elementwise functions that several kernels share.
#pragma once

#include "simd.h"

namespace baton::BATON_ISA {

constexpr float kLog2E = 1.4426950408889634f;

// x / (1 + e^-x)
BATON_INLINE F32 silu(F32 x) {
  const F32 power = exp2(mul(x, splat(-kLog2E)));
  return div(x, add(splat(1.0f), power));
}

// 1 / sqrt(mean of squares + eps) over n values (n a multiple of 16), for RMS normalization
// (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).
BATON_INLINE float inverse_rms(const float* x, int n, float eps) {
  F32 squares = zero();
  for (int i = 0; i < n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  return 1.0f / std::sqrt(sum(squares) / float(n) + eps);
}

}  // namespace baton::BATON_ISA
