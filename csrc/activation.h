// The elementwise functions that several kernels share.
#pragma once

#include "simd.h"

namespace baton::BATON_ISA {

constexpr float kLog2E = 1.4426950408889634f;

constexpr float kMaxInt8 = 127.0f;

// How values of up to `magnitude` become int8: q = nearest(x * inverse), x = scale * q. The factor
// is the reciprocal, as GGUF's own form for activations has it (Q8_1 of ggml).
struct Int8Rounding {
  float scale;    // NaN where a value is not finite, so that it shows in every result
  float inverse;  // 0 where the scale would be a denormal, or is NaN

  explicit BATON_INLINE Int8Rounding(float magnitude) : scale(magnitude / kMaxInt8), inverse(0) {
    if ((bits_of(magnitude) & 0x7f800000u) == 0x7f800000u) scale = float_of(0x7fc00000u);
    if (scale > 0.0f) inverse = kMaxInt8 / magnitude;
  }
  BATON_INLINE I32 round(F32 x) const {
    return inverse == 0.0f ? izero() : to_int(mul(x, splat(inverse)));
  }
};

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
