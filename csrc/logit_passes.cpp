// The passes over logits, sixteen at a time. See logit_passes.h.
#include "logit_passes.h"

#include <limits>

#include "simd.h"

namespace baton::BATON_ISA {
namespace {

static_assert(kLanes == kTileMaxima);

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// values[i .. i+16), minus infinity from `num` on.
BATON_INLINE F32 load_row(const float* values, int i, int num) {
  if (i + kLanes <= num) return load(values + i);
  float lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    lanes[lane] = i + lane < num ? values[i + lane] : -kInfinity;
  return load(lanes);
}

// Totals of whole numbers up to 2^40, of up to kTile of them, without rounding: halves of 2^25.
struct TileSum {
  I32 high = izero(), low = izero();

  BATON_INLINE void add(F32 whole) {
    const I32 upper = to_int(mul(whole, splat(0x1p-25f)));
    const F32 rest = fma(to_float(upper), splat(-0x1p25f), whole);
    high = iadd(high, upper);
    low = iadd(low, to_int(rest));
  }

  int64_t total() const {
    int32_t upper[kLanes], lower[kLanes];
    std::memcpy(upper, &high, sizeof upper);
    std::memcpy(lower, &low, sizeof lower);
    int64_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += (int64_t(upper[lane]) << 25) + lower[lane];
    return sum;
  }
};

BATON_INLINE uint32_t key_of(float value) {
  const uint32_t bits = bits_of(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace

bool scan(const float* values, int num, float* maxima) {
  uint32_t are_numbers = 0xffffu;
  for (int first = 0; first < num; first += kTile, maxima += kTileMaxima) {
    const int end = first + kTile < num ? first + kTile : num;
    F32 largest = splat(-kInfinity);
    for (int i = first; i < end; i += kLanes) {
      const F32 x = load_row(values, i, num);
      are_numbers &= lanes_at_least(x, x);
      largest = max(largest, x);
    }
    store(maxima, largest);
  }
  return are_numbers == 0xffffu;
}

void weigh(const float* logits, int num, float best, float scale, float* weights, float* maxima,
           int64_t* sums) {
  const F32 shift = splat(best), factor = splat(scale), quanta = splat(kBestWeight);
  for (int first = 0; first < num; first += kTile, maxima += kTileMaxima, ++sums) {
    const int end = first + kTile < num ? first + kTile : num;
    F32 largest = zero();
    TileSum sum;
    for (int i = first; i < end; i += kLanes) {
      const F32 x = mul(sub(load_row(logits, i, num), shift), factor);
      const F32 weight = nearest(mul(exp2(x), quanta));
      store(weights + i, weight);
      largest = max(largest, weight);
      sum.add(weight);
    }
    store(maxima, largest);
    *sums = sum.total();
  }
}

int collect(const float* values, int num, float least, Candidate* found) {
  const F32 bound = splat(least);
  int count = 0;
  for (int i = 0; i < num; i += kLanes) {
    uint32_t hits = lanes_at_least(load_row(values, i, num), bound);
    if (i + kLanes > num) hits &= (1u << (num - i)) - 1;
    for (; hits != 0; hits &= hits - 1) {
      const int id = i + __builtin_ctz(hits);
      found[count++] = {key_of(values[id]), id};
    }
  }
  return count;
}

}  // namespace baton::BATON_ISA
