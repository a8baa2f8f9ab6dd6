// Rotates queries and keys, and writes keys and values to the pool.
//
// A row is done by one thread and writes only its own elements, never a neighbour's: rows that
// share a pair in the pool may be done at the same time.
// Elsewhere: the pool's layout (kernels.h, kv_cache.h), norms of whole rows (rows.cpp).
#include "kv_cache.h"

#include "activation.h"
#include "kernels.h"
#include "simd.h"

namespace baton::BATON_ISA {
namespace {

BATON_INLINE void normalize(float* x, int num, const float* weight, float eps) {
  const F32 inverse = splat(inverse_rms(x, num, eps));
  for (int i = 0; i < num; i += kLanes)
    store(x + i, mul(mul(load(x + i), inverse), load(weight + i)));
}

// (low, high) turned by their angle, as NeoX pairs them: dim i with dim i + D/2
// (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021).
BATON_INLINE void rotate_lanes(float* low, float* high, const float* cos, const float* sin) {
  const F32 a = load(low), b = load(high), c = load(cos), s = load(sin);
  store(low, fma(a, c, sub(zero(), mul(b, s))));
  store(high, fma(b, c, mul(a, s)));
}

BATON_INLINE void rotate(float* x, int half, const float* cos, const float* sin) {
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) rotate_lanes(x + i, x + half + i, cos + i, sin + i);
  if (i == half) return;
  const size_t rest = sizeof(float) * size_t(half - i);
  float low[kLanes] = {}, high[kLanes] = {}, c[kLanes] = {}, s[kLanes] = {};
  std::memcpy(low, x + i, rest);
  std::memcpy(high, x + half + i, rest);
  std::memcpy(c, cos + i, rest);
  std::memcpy(s, sin + i, rest);
  rotate_lanes(low, high, c, s);
  std::memcpy(x + i, low, rest);
  std::memcpy(x + half + i, high, rest);
}

// A head's D values on their way into the pool.
struct Bf16Values {
  using Element = uint16_t;
  Element values[kMaxHeadDim];

  BATON_INLINE void round(const float* x, int num) {
    for (int i = 0; i < num; i += kLanes) store_bf16(values + i, load(x + i));
  }
};

struct Int8Values {
  using Element = int8_t;
  Element values[kMaxHeadDim];
  float scale;

  BATON_INLINE void round(const float* x, int num) {
    F32 magnitudes = zero();
    for (int i = 0; i < num; i += kLanes) magnitudes = larger_magnitude(magnitudes, load(x + i));
    const Int8Rounding rounding(largest_magnitude(magnitudes));
    scale = rounding.scale;
    for (int i = 0; i < num; i += kLanes) store_s8(values + i, rounding.round(load(x + i)));
  }
};

template <class Values>
BATON_INLINE void write_key(const Values& key, const KvLayer& kv, int64_t block, int offset,
                            int head) {
  using Element = typename Values::Element;
  Element* at = reinterpret_cast<Element*>(keys_at(kv, block, head)) + key_index(kv, offset);
  for (int d = 0; d < kv.head_dim; d += 2)
    std::memcpy(at + d / 2 * kKeyPairStride, key.values + d, 2 * sizeof(Element));
}

template <class Values>
BATON_INLINE void write_value(const Values& value, const KvLayer& kv, int64_t block, int offset,
                              int head) {
  using Element = typename Values::Element;
  Element* at = reinterpret_cast<Element*>(values_at(kv, block, head)) + value_index(kv, offset);
  for (int d = 0; d < kv.head_dim; ++d) at[2 * d] = value.values[d];
}

template <class Values>
BATON_INLINE void write_row(const float* keys, const float* values, const KvLayer& kv,
                            int64_t slot) {
  const int64_t block = slot / kv.block_size;
  const int offset = int(slot % kv.block_size);
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    Values key, value;
    key.round(keys + head * kv.head_dim, kv.head_dim);
    value.round(values + head * kv.head_dim, kv.head_dim);
    write_key(key, kv, block, offset, head);
    write_value(value, kv, block, offset, head);
    if constexpr (sizeof(typename Values::Element) == 1) {
      key_scales_at(kv, block, head)[offset] = key.scale;
      value_scales_at(kv, block, head)[offset] = value.scale;
    }
  }
}

}  // namespace

void rotary_write(const RotaryArgs& args, const KvLayer& kv, int begin, int end) {
  const int dim = kv.head_dim, half = dim / 2;
  for (int row = begin; row < end; ++row) {
    float* queries = args.qkv + row * args.qkv_stride;
    float* keys = queries + args.num_heads * dim;
    float* values = keys + kv.num_kv_heads * dim;
    const float* cos = args.cos + int64_t(row) * half;
    const float* sin = args.sin + int64_t(row) * half;
    for (int head = 0; head < args.num_heads; ++head) {
      float* q = queries + head * dim;
      if (args.q_norm != nullptr) normalize(q, dim, args.q_norm, args.norm_eps);
      rotate(q, half, cos, sin);
    }
    for (int head = 0; head < kv.num_kv_heads; ++head) {
      float* k = keys + head * dim;
      if (args.k_norm != nullptr) normalize(k, dim, args.k_norm, args.norm_eps);
      rotate(k, half, cos, sin);
    }
    if (kv.form == KvForm::kInt8) {
      write_row<Int8Values>(keys, values, kv, args.slots[row]);
    } else {
      write_row<Bf16Values>(keys, values, kv, args.slots[row]);
    }
  }
}

}  // namespace baton::BATON_ISA
