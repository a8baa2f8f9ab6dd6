// Sixteen lanes of arithmetic, written once for each instruction set.
//
// Every kernel is compiled three times, each time with BATON_ISA naming one of the namespaces below
// and the compiler flags that go with it: `avx512` (with VNNI and BF16), `avx2` (with FMA and F16C)
// and `portable` (plain C++). A lane computes the same IEEE operations in the same order in all
// three, so the results have the same bits on every machine.
//
// Invariants that this rests on:
// - multiply-add is always fused, and only where the code says `fma` (-ffp-contract=off);
// - denormals are flushed everywhere (DenormalsOff), as the BF16 dot product always does;
// - sums over lanes use the one tree in `sum`.
// Elsewhere: which of the three runs (dispatch.cpp), the kernels (linear.cpp, attention.cpp, ...).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(BATON_ISA_avx512) || defined(BATON_ISA_avx2)
#include <immintrin.h>
#endif

#define BATON_INLINE inline __attribute__((always_inline))

namespace baton::BATON_ISA {

constexpr int kLanes = 16;

BATON_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

BATON_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

BATON_INLINE float float_of_bf16(uint16_t value) { return float_of(uint32_t(value) << 16); }

// Round to nearest even; denormals become zero and NaN stays quiet, as VCVTNEPS2BF16 has it.
BATON_INLINE uint16_t bf16_of(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & 0x7f800000u) == 0) return uint16_t((bits & 0x80000000u) >> 16);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  bits += 0x7fffu + ((bits >> 16) & 1);
  return uint16_t(bits >> 16);
}

// IEEE half to float. Half's denormals are normal floats, so nothing is flushed here.
BATON_INLINE float float_of_half(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 0x1fu;
  const uint32_t mantissa = value & 0x3ffu;
  if (exponent == 0x1f) return float_of(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = float(mantissa) * 0x1p-24f;
  return float_of(sign | bits_of(magnitude));
}

#if defined(BATON_ISA_avx512)

struct F32 {  // 16 floats
  __m512 v;
};
struct I32 {  // 16 int32
  __m512i v;
};
struct U8x64 {  // lane i holds bytes 4i .. 4i+3
  __m512i v;
};
struct B16x32 {  // lane i holds the bf16 pair 2i, 2i+1
  __m512i v;
};

BATON_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
BATON_INLINE F32 splat(float x) { return {_mm512_set1_ps(x)}; }
BATON_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
BATON_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
BATON_INLINE F32 load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
BATON_INLINE F32 load_bf16(const uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
BATON_INLINE void store_bf16(uint16_t* p, F32 a) {
  const __m256bh rounded = _mm512_cvtneps_pbh(a.v);
  std::memcpy(p, &rounded, 32);
}
BATON_INLINE F32 load_s8(const int8_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw))};
}
BATON_INLINE F32 load_u8(const uint8_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(raw))};
}
BATON_INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
BATON_INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
BATON_INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
BATON_INLINE F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
BATON_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// As x86 has it: b where either is NaN.
BATON_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
BATON_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
BATON_INLINE F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
// The nearest whole number, ties to even.
BATON_INLINE F32 nearest(F32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// Bit i: a >= b in lane i; not so where either is NaN.
BATON_INLINE uint32_t lanes_at_least(F32 a, F32 b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
}

BATON_INLINE I32 izero() { return {_mm512_setzero_si512()}; }
BATON_INLINE I32 isplat(int32_t x) { return {_mm512_set1_epi32(x)}; }
BATON_INLINE I32 iadd(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
BATON_INLINE F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Nearest, ties to even; the value must fit.
BATON_INLINE I32 to_int(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
BATON_INLINE void store_s8(int8_t* p, I32 a) {  // values must fit
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// a * 2^n for n such that the result's exponent is in range.
BATON_INLINE F32 scale_by_power(F32 a, I32 n) {
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(power))};
}

// a * 2^n, where n is in the low bits of k = 1.5 * 2^23 + n; the result must be a normal number.
BATON_INLINE F32 scale_by_low_bits(F32 a, F32 k) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(k.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), n))};
}

BATON_INLINE U8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
BATON_INLINE U8x64 low_nibbles(U8x64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
BATON_INLINE U8x64 high_nibbles(U8x64 a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
// Lane i: acc + the exact dot product of its 4 unsigned weights with the 4 signed bytes of `four`.
BATON_INLINE I32 dot4(I32 acc, U8x64 weights, int32_t four) {
  return {_mm512_dpbusd_epi32(acc.v, weights.v, _mm512_set1_epi32(four))};
}
// The same for weights below 16, where AVX2 has a shorter way.
BATON_INLINE I32 dot4_nibbles(I32 acc, U8x64 weights, int32_t four) {
  return dot4(acc, weights, four);
}

BATON_INLINE B16x32 load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
BATON_INLINE B16x32 splat_pair(uint32_t pair) { return {_mm512_set1_epi32(int32_t(pair))}; }
// Only the first of each pair; the second becomes zero.
BATON_INLINE B16x32 first_of_pairs(B16x32 a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(0xffff))};
}
BATON_INLINE B16x32 second_of_pairs(B16x32 a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(int32_t(0xffff0000u)))};
}
// Lane i: fma(a[2i], b[2i], fma(a[2i+1], b[2i+1], acc)).
BATON_INLINE F32 dot2(F32 acc, B16x32 a, B16x32 b) {
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
}
// Lanes [low, high) of a, the others of b; bounds may lie outside [0, 16].
BATON_INLINE F32 keep_lanes(F32 a, F32 b, int low, int high) {
  const uint32_t below_high = high >= 16 ? 0xffffu : high <= 0 ? 0u : (1u << high) - 1;
  const uint32_t below_low = low >= 16 ? 0xffffu : low <= 0 ? 0u : (1u << low) - 1;
  return {_mm512_mask_blend_ps(__mmask16(below_high & ~below_low), b.v, a.v)};
}

#elif defined(BATON_ISA_avx2)

struct F32 {
  __m256 v[2];
};
struct I32 {
  __m256i v[2];
};
struct U8x64 {
  __m256i v[2];
};
struct B16x32 {
  __m256i v[2];
};

BATON_INLINE F32 zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
BATON_INLINE F32 splat(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
BATON_INLINE F32 load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
BATON_INLINE void store(float* p, F32 a) {
  _mm256_storeu_ps(p, a.v[0]);
  _mm256_storeu_ps(p + 8, a.v[1]);
}
BATON_INLINE __m128i load_128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
BATON_INLINE __m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
BATON_INLINE F32 load_half(const uint16_t* p) {
  return {{_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))}};
}
BATON_INLINE F32 load_bf16(const uint16_t* p) {
  F32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256i wide = _mm256_cvtepu16_epi32(load_128(p + 8 * h));
    r.v[h] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  return r;
}
BATON_INLINE void store_bf16(uint16_t* p, F32 a) {
  for (int h = 0; h < 2; ++h) {
    const __m256i bits = _mm256_castps_si256(a.v[h]);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    r = _mm256_srli_epi32(r, 16);
    const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    const __m256i is_tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x8000));
    r = _mm256_blendv_epi8(r, sign, is_tiny);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v[h], a.v[h], _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    r = _mm256_blendv_epi8(r, quiet, is_nan);
    const __m128i low = _mm256_castsi256_si128(r), high = _mm256_extracti128_si256(r, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * h), _mm_packus_epi32(low, high));
  }
}
BATON_INLINE F32 load_s8(const int8_t* p) {
  const __m128i raw = load_128(p);
  return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw)),
           _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(raw, 8)))}};
}
BATON_INLINE F32 load_u8(const uint8_t* p) {
  const __m128i raw = load_128(p);
  return {{_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(raw)),
           _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(raw, 8)))}};
}
#define BATON_BOTH(expression0, expression1) \
  {                                          \
    {                                        \
      expression0, expression1               \
    }                                        \
  }
BATON_INLINE F32 add(F32 a, F32 b) {
  return BATON_BOTH(_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1]));
}
BATON_INLINE F32 sub(F32 a, F32 b) {
  return BATON_BOTH(_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1]));
}
BATON_INLINE F32 mul(F32 a, F32 b) {
  return BATON_BOTH(_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1]));
}
BATON_INLINE F32 div(F32 a, F32 b) {
  return BATON_BOTH(_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1]));
}
BATON_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return BATON_BOTH(_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]),
                    _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1]));
}
BATON_INLINE F32 max(F32 a, F32 b) {
  return BATON_BOTH(_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1]));
}
BATON_INLINE F32 min(F32 a, F32 b) {
  return BATON_BOTH(_mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1]));
}
BATON_INLINE F32 abs(F32 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return BATON_BOTH(_mm256_andnot_ps(sign, a.v[0]), _mm256_andnot_ps(sign, a.v[1]));
}
BATON_INLINE F32 nearest(F32 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return BATON_BOTH(_mm256_round_ps(a.v[0], kMode), _mm256_round_ps(a.v[1], kMode));
}
BATON_INLINE uint32_t lanes_at_least(F32 a, F32 b) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.v[0], b.v[0], _CMP_GE_OQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.v[1], b.v[1], _CMP_GE_OQ));
  return uint32_t(low | high << 8);
}

BATON_INLINE I32 izero() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
BATON_INLINE I32 isplat(int32_t x) { return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
BATON_INLINE I32 iadd(I32 a, I32 b) {
  return BATON_BOTH(_mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1]));
}
BATON_INLINE F32 to_float(I32 a) {
  return BATON_BOTH(_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1]));
}
BATON_INLINE I32 to_int(F32 a) {
  return BATON_BOTH(_mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1]));
}
BATON_INLINE void store_s8(int8_t* p, I32 a) {
  for (int h = 0; h < 2; ++h) {
    const __m128i low = _mm256_castsi256_si128(a.v[h]);
    const __m128i words = _mm_packs_epi32(low, _mm256_extracti128_si256(a.v[h], 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 8 * h), _mm_packs_epi16(words, words));
  }
}
BATON_INLINE F32 scale_by_power(F32 a, I32 n) {
  F32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256i biased = _mm256_add_epi32(n.v[h], _mm256_set1_epi32(127));
    r.v[h] = _mm256_mul_ps(a.v[h], _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
  }
  return r;
}

BATON_INLINE F32 scale_by_low_bits(F32 a, F32 k) {
  F32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(k.v[h]), 23);
    r.v[h] = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v[h]), n));
  }
  return r;
}

BATON_INLINE U8x64 load_bytes(const uint8_t* p) { return {{load_256(p), load_256(p + 32)}}; }
BATON_INLINE U8x64 low_nibbles(U8x64 a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return BATON_BOTH(_mm256_and_si256(a.v[0], mask), _mm256_and_si256(a.v[1], mask));
}
BATON_INLINE U8x64 high_nibbles(U8x64 a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return BATON_BOTH(_mm256_and_si256(_mm256_srli_epi16(a.v[0], 4), mask),
                    _mm256_and_si256(_mm256_srli_epi16(a.v[1], 4), mask));
}
// VPMADDUBSW saturates for weights above 128, so whole bytes go through 16-bit products.
BATON_INLINE I32 dot4(I32 acc, U8x64 weights, int32_t four) {
  const __m256i signed_four = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
  const __m256i low_bytes = _mm256_set1_epi16(0xff);
  // Bytes 0 and 2 of each lane in one register, 1 and 3 in the other; the same of `four`.
  const __m256i even_four = _mm256_shuffle_epi32(
      _mm256_shufflelo_epi16(_mm256_shufflehi_epi16(signed_four, 0x88), 0x88), 0x00);
  const __m256i odd_four = _mm256_shuffle_epi32(
      _mm256_shufflelo_epi16(_mm256_shufflehi_epi16(signed_four, 0xdd), 0xdd), 0x00);
  I32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256i even = _mm256_and_si256(weights.v[h], low_bytes);
    const __m256i odd = _mm256_srli_epi16(weights.v[h], 8);
    const __m256i sum =
        _mm256_add_epi32(_mm256_madd_epi16(even, even_four), _mm256_madd_epi16(odd, odd_four));
    r.v[h] = _mm256_add_epi32(acc.v[h], sum);
  }
  return r;
}
BATON_INLINE I32 dot4_nibbles(I32 acc, U8x64 weights, int32_t four) {
  const __m256i bytes = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  I32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256i pairs = _mm256_maddubs_epi16(weights.v[h], bytes);
    r.v[h] = _mm256_add_epi32(acc.v[h], _mm256_madd_epi16(pairs, ones));
  }
  return r;
}

BATON_INLINE B16x32 load_pairs(const uint16_t* p) { return {{load_256(p), load_256(p + 16)}}; }
BATON_INLINE B16x32 splat_pair(uint32_t pair) {
  const __m256i both = _mm256_set1_epi32(int32_t(pair));
  return {{both, both}};
}
BATON_INLINE B16x32 first_of_pairs(B16x32 a) {
  const __m256i mask = _mm256_set1_epi32(0xffff);
  return BATON_BOTH(_mm256_and_si256(a.v[0], mask), _mm256_and_si256(a.v[1], mask));
}
BATON_INLINE B16x32 second_of_pairs(B16x32 a) {
  const __m256i mask = _mm256_set1_epi32(int32_t(0xffff0000u));
  return BATON_BOTH(_mm256_and_si256(a.v[0], mask), _mm256_and_si256(a.v[1], mask));
}
BATON_INLINE F32 dot2(F32 acc, B16x32 a, B16x32 b) {
  const __m256i mask = _mm256_set1_epi32(int32_t(0xffff0000u));
  F32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256 a1 = _mm256_castsi256_ps(_mm256_and_si256(a.v[h], mask));
    const __m256 b1 = _mm256_castsi256_ps(_mm256_and_si256(b.v[h], mask));
    const __m256 a0 = _mm256_castsi256_ps(_mm256_slli_epi32(a.v[h], 16));
    const __m256 b0 = _mm256_castsi256_ps(_mm256_slli_epi32(b.v[h], 16));
    r.v[h] = _mm256_fmadd_ps(a0, b0, _mm256_fmadd_ps(a1, b1, acc.v[h]));
  }
  return r;
}
BATON_INLINE F32 keep_lanes(F32 a, F32 b, int low, int high) {
  const __m256i first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  F32 r;
  for (int h = 0; h < 2; ++h) {
    const __m256i lane = _mm256_add_epi32(first, _mm256_set1_epi32(8 * h));
    const __m256i below_low = _mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane);
    const __m256i below_high = _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane);
    const __m256i kept = _mm256_andnot_si256(below_low, below_high);
    r.v[h] = _mm256_blendv_ps(b.v[h], a.v[h], _mm256_castsi256_ps(kept));
  }
  return r;
}

#else  // portable

struct F32 {
  float v[16];
};
struct I32 {
  int32_t v[16];
};
struct U8x64 {
  uint8_t v[64];
};
struct B16x32 {
  uint16_t v[32];
};

#define BATON_LANES(type, expression)               \
  type r;                                           \
  for (int i = 0; i < 16; ++i) r.v[i] = expression; \
  return r
BATON_INLINE F32 zero() { BATON_LANES(F32, 0.0f); }
BATON_INLINE F32 splat(float x) { BATON_LANES(F32, x); }
BATON_INLINE F32 load(const float* p) { BATON_LANES(F32, p[i]); }
BATON_INLINE void store(float* p, F32 a) { std::memcpy(p, a.v, sizeof a.v); }
BATON_INLINE F32 load_half(const uint16_t* p) { BATON_LANES(F32, float_of_half(p[i])); }
BATON_INLINE F32 load_bf16(const uint16_t* p) { BATON_LANES(F32, float_of_bf16(p[i])); }
BATON_INLINE void store_bf16(uint16_t* p, F32 a) {
  for (int i = 0; i < 16; ++i) p[i] = bf16_of(a.v[i]);
}
BATON_INLINE F32 load_s8(const int8_t* p) { BATON_LANES(F32, float(p[i])); }
BATON_INLINE F32 load_u8(const uint8_t* p) { BATON_LANES(F32, float(p[i])); }
BATON_INLINE F32 add(F32 a, F32 b) { BATON_LANES(F32, a.v[i] + b.v[i]); }
BATON_INLINE F32 sub(F32 a, F32 b) { BATON_LANES(F32, a.v[i] - b.v[i]); }
BATON_INLINE F32 mul(F32 a, F32 b) { BATON_LANES(F32, a.v[i] * b.v[i]); }
BATON_INLINE F32 div(F32 a, F32 b) { BATON_LANES(F32, a.v[i] / b.v[i]); }
BATON_INLINE F32 fma(F32 a, F32 b, F32 c) { BATON_LANES(F32, std::fma(a.v[i], b.v[i], c.v[i])); }
BATON_INLINE F32 max(F32 a, F32 b) { BATON_LANES(F32, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
BATON_INLINE F32 min(F32 a, F32 b) { BATON_LANES(F32, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
BATON_INLINE F32 abs(F32 a) { BATON_LANES(F32, float_of(bits_of(a.v[i]) & 0x7fffffffu)); }
BATON_INLINE float nearest(float x) {
  const float magnitude = float_of(bits_of(x) & 0x7fffffffu);
  if (!(magnitude < 0x1p23f)) return x;
  return std::copysign((magnitude + 0x1p23f) - 0x1p23f, x);
}
BATON_INLINE F32 nearest(F32 a) { BATON_LANES(F32, nearest(a.v[i])); }
BATON_INLINE uint32_t lanes_at_least(F32 a, F32 b) {
  uint32_t lanes = 0;
  for (int i = 0; i < 16; ++i) lanes |= uint32_t(a.v[i] >= b.v[i]) << i;
  return lanes;
}

BATON_INLINE I32 izero() { BATON_LANES(I32, 0); }
BATON_INLINE I32 isplat(int32_t x) { BATON_LANES(I32, x); }
BATON_INLINE I32 iadd(I32 a, I32 b) { BATON_LANES(I32, a.v[i] + b.v[i]); }
BATON_INLINE F32 to_float(I32 a) { BATON_LANES(F32, float(a.v[i])); }
BATON_INLINE I32 to_int(F32 a) { BATON_LANES(I32, int32_t(std::lrintf(a.v[i]))); }
BATON_INLINE void store_s8(int8_t* p, I32 a) {
  for (int i = 0; i < 16; ++i) p[i] = int8_t(a.v[i]);
}
BATON_INLINE F32 scale_by_power(F32 a, I32 n) {
  BATON_LANES(F32, a.v[i] * float_of(uint32_t(n.v[i] + 127) << 23));
}

BATON_INLINE F32 scale_by_low_bits(F32 a, F32 k) {
  BATON_LANES(F32, float_of(bits_of(a.v[i]) + (bits_of(k.v[i]) << 23)));
}

BATON_INLINE U8x64 load_bytes(const uint8_t* p) {
  U8x64 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
BATON_INLINE U8x64 low_nibbles(U8x64 a) {
  for (auto& byte : a.v) byte &= 15;
  return a;
}
BATON_INLINE U8x64 high_nibbles(U8x64 a) {
  for (auto& byte : a.v) byte >>= 4;
  return a;
}
BATON_INLINE I32 dot4(I32 acc, U8x64 weights, int32_t four) {
  int8_t bytes[4];
  std::memcpy(bytes, &four, sizeof bytes);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) acc.v[i] += int32_t(weights.v[4 * i + j]) * bytes[j];
  return acc;
}
BATON_INLINE I32 dot4_nibbles(I32 acc, U8x64 weights, int32_t four) {
  return dot4(acc, weights, four);
}

BATON_INLINE B16x32 load_pairs(const uint16_t* p) {
  B16x32 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
BATON_INLINE B16x32 splat_pair(uint32_t pair) {
  B16x32 r;
  for (int i = 0; i < 16; ++i) {
    r.v[2 * i] = uint16_t(pair);
    r.v[2 * i + 1] = uint16_t(pair >> 16);
  }
  return r;
}
BATON_INLINE B16x32 first_of_pairs(B16x32 a) {
  for (int i = 0; i < 16; ++i) a.v[2 * i + 1] = 0;
  return a;
}
BATON_INLINE B16x32 second_of_pairs(B16x32 a) {
  for (int i = 0; i < 16; ++i) a.v[2 * i] = 0;
  return a;
}
BATON_INLINE F32 dot2(F32 acc, B16x32 a, B16x32 b) {
  for (int i = 0; i < 16; ++i) {
    const float second =
        std::fma(float_of_bf16(a.v[2 * i + 1]), float_of_bf16(b.v[2 * i + 1]), acc.v[i]);
    acc.v[i] = std::fma(float_of_bf16(a.v[2 * i]), float_of_bf16(b.v[2 * i]), second);
  }
  return acc;
}
BATON_INLINE F32 keep_lanes(F32 a, F32 b, int low, int high) {
  BATON_LANES(F32, (i >= low && i < high ? a.v[i] : b.v[i]));
}

#endif

// Lanes i and i+8, then i+4, i+2, i+1: one tree for all instruction sets.
BATON_INLINE float sum(F32 a) {
  float lane[16];
  store(lane, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
// The larger of a and |b| for a not negative. As integers, floats without a sign have the order of
// their values, and every NaN is above all of them: one is never lost.
BATON_INLINE F32 larger_magnitude(F32 a, F32 b) {
  F32 r;
#if defined(BATON_ISA_avx512)
  const __m512i bits = _mm512_castps_si512(abs(b).v);
  r.v = _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), bits));
#elif defined(BATON_ISA_avx2)
  const F32 magnitude = abs(b);
  for (int h = 0; h < 2; ++h)
    r.v[h] = _mm256_castsi256_ps(
        _mm256_max_epi32(_mm256_castps_si256(a.v[h]), _mm256_castps_si256(magnitude.v[h])));
#else
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = bits_of(b.v[i]) & 0x7fffffffu;
    r.v[i] = float_of(bits > bits_of(a.v[i]) ? bits : bits_of(a.v[i]));
  }
#endif
  return r;
}

// Of lanes that `larger_magnitude` made.
BATON_INLINE float largest_magnitude(F32 a) {
#if defined(BATON_ISA_avx512)
  return float_of(uint32_t(_mm512_reduce_max_epi32(_mm512_castps_si512(a.v))));
#endif
  uint32_t lane[16], most = 0;
  std::memcpy(lane, &a, sizeof lane);
  for (uint32_t each : lane) most = each > most ? each : most;
  return float_of(most);
}

BATON_INLINE float largest(F32 a) {
#if defined(BATON_ISA_avx512)
  return _mm512_reduce_max_ps(a.v);
#endif
  float lane[16];
  store(lane, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

// Lane i: the largest lane of rows[i]; the lanes from kNum on are anything. At most 8 rows.
template <int kNum>
BATON_INLINE F32 largest_of_each(const F32 (&rows)[kNum]) {
  static_assert(kNum <= 8);
#if defined(BATON_ISA_avx512)
  // Halves, quarters: blocks of 4 lanes belong to rows 0 1 2 3 and 4 5 6 7.
  __m512 half[4], quarter[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = rows[2 * i % kNum].v, b = rows[(2 * i + 1) % kNum].v;
    half[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    quarter[i] = _mm512_max_ps(_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88),
                               _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xdd));
  const __m512 pairs = _mm512_max_ps(_mm512_unpacklo_ps(quarter[0], quarter[1]),
                                     _mm512_unpackhi_ps(quarter[0], quarter[1]));
  const __m512 all = _mm512_max_ps(pairs, _mm512_permute_ps(pairs, 0x4e));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
  return {_mm512_permutexvar_ps(order, all)};
#else
  float lane[16] = {};
  for (int i = 0; i < kNum; ++i) lane[i] = largest(rows[i]);
  return load(lane);
#endif
}

BATON_INLINE int32_t isum(I32 a) {
#if defined(BATON_ISA_avx512)
  return _mm512_reduce_add_epi32(a.v);
#endif
  int32_t lane[16], total = 0;
  std::memcpy(lane, &a, sizeof lane);
  for (int32_t each : lane) total += each;
  return total;
}

// 2^x with an error below 2 units in the last place for x in [-126, 126]; 0 below that range.
// Coefficients: a minimax fit of 2^f on [-0.5, 0.5], the usual degree-6 polynomial.
BATON_INLINE F32 exp2(F32 x) {
  const F32 clamped = max(splat(-127.0f), min(splat(126.0f), x));  // NaN stays NaN
  const I32 whole = to_int(clamped);
  const F32 part = sub(clamped, to_float(whole));
  F32 p = splat(1.535336188319500e-4f);
  p = fma(p, part, splat(1.339887440266574e-3f));
  p = fma(p, part, splat(9.618437357674640e-3f));
  p = fma(p, part, splat(5.550332471162809e-2f));
  p = fma(p, part, splat(2.402264791363012e-1f));
  p = fma(p, part, splat(6.931472028550421e-1f));
  p = fma(p, part, splat(1.0f));
  return scale_by_power(p, whole);
}

}  // namespace baton::BATON_ISA
