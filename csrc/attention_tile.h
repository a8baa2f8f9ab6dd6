// The arithmetic of attention: a few query rows against one tile of keys, in registers.
//
// Softmax runs along the tiles (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018; Dao et al., "FlashAttention", 2022): weights are relative to the largest score so
// far, and a larger one rescales what is there. Queries, keys, weights and values are bf16, sums
// are float.
// Invariant: what a row computes depends on the keys that it sees and on nothing else. A key that
// it does not see is masked in the scores, and its value never enters a sum, not even times zero
// (the pool may hold NaN there).
// Elsewhere: which rows and tiles meet (attention.cpp), the pool (kv_cache.h).
//
// Shapes: R rows in registers, C registers side by side, D head dim.
#pragma once

#include "activation.h"
#include "kernels.h"
#include "kv_cache.h"
#include "simd.h"

namespace baton::BATON_ISA {

constexpr int kTileKeys = 64;
constexpr int kTileGroups = kTileKeys / kKeyGroup;

// How many sums fit the registers: R rows times C registers. Never shows in a result.
#if defined(BATON_ISA_avx512)
constexpr int kMaxRows = 6, kMaxColumns = 4;
#elif defined(BATON_ISA_avx2)
constexpr int kMaxRows = 4, kMaxColumns = 1;
#else
constexpr int kMaxRows = 1, kMaxColumns = 1;
#endif
static_assert(kTileGroups % kMaxColumns == 0);

// 64 neighbouring keys of a kv head. Where none of a group of 16 is visible to anyone, its pointers
// stand at some other group: its scores are masked, its values are not read.
struct KeyTile {
  int begin;                            // position of the first key, a multiple of 64
  const uint16_t* keys[kTileGroups];    // [D/2][16][2] each
  const uint16_t* values[kTileGroups];  // [8][D][2] each
  const float* key_scales;              // 64 each, or null for none
  const float* value_scales;
};

// What to fetch into the cache meanwhile: the next tile's keys and values, as the pool has them.
// Between the products, as a burst of prefetches would hold them up.
struct NextTile {
  int64_t element_bytes;
  const uint8_t* keys[kTileGroups];
  const uint8_t* values[kTileGroups];
};
struct NoTile {};  // nothing to fetch
template <class Next>
constexpr bool kFetches = true;
template <>
constexpr bool kFetches<NoTile> = false;

// Query rows on their way through the tiles of a segment.
struct Rows {
  int head_dim;
  float log2_scale;      // scores times this are the exponents of 2
  const uint16_t* q;     // by tiles of R rows, each [D/2][R][2]
  const int32_t* first;  // rows: position of the first key that the row sees
  const int32_t* end;    // rows: position after the last
  float* peak;           // rows + 16: largest score so far, -inf before the first
  float* sums;           // rows x 16: sums of weights, by lane
  float* out;            // rows x D: sums of weighted values
};

constexpr float kMinusInfinity = -__builtin_inff();

// The keys [first, end) of a tile that a row sees.
struct Visible {
  int first, end;
  BATON_INLINE bool is_empty() const { return first >= end; }
};

BATON_INLINE Visible visible_to(const Rows& rows, int row, const KeyTile& tile) {
  const int first = rows.first[row] - tile.begin, end = rows.end[row] - tile.begin;
  return {first > 0 ? first : 0, end < kTileKeys ? end : kTileKeys};
}

BATON_INLINE uint32_t pair_of(const uint16_t* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return pair;
}

// 2^x for the exponents of weights, x from -inf up to 0 or barely above. Relative error below 3e-6,
// well under the 4e-3 of the rounding to bf16 that follows; 2^0 is exact, and 2^-126 the smallest.
// Coefficients: a minimax fit on [-0.5, 0.5].
BATON_INLINE F32 exp2_of_weight(F32 x) {
  const F32 shift = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  const F32 clamped = max(splat(-126.0f), x);
  const F32 shifted = add(clamped, shift);
  const F32 part = sub(clamped, sub(shifted, shift));
  F32 p = splat(9.582852013409138e-3f);
  p = fma(p, part, splat(5.590642616152764e-2f));
  p = fma(p, part, splat(2.402409911155701e-1f));
  p = fma(p, part, splat(6.931241750717163e-1f));
  p = fma(p, part, splat(1.0f));
  return scale_by_low_bits(p, shifted);
}

// Scores of R rows with C groups of keys: lane i is key i, dims are summed in order.
template <int R, int C, class Next>
BATON_INLINE void score_groups(const uint16_t* q, int head_dim, const KeyTile& tile,
                               const Next& next, int group, float* scores) {
  F32 sums[R][C];
  const uint16_t* keys[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    keys[c] = tile.keys[group + c];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][c] = zero();
  }
  for (int d = 0; d < head_dim; d += 2) {
    B16x32 pairs[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      pairs[c] = load_pairs(keys[c] + d * kKeyGroup);
      if constexpr (kFetches<Next>)
        __builtin_prefetch(next.keys[group + c] + d * kKeyGroup * next.element_bytes, 0, 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const B16x32 own = splat_pair(pair_of(q + d * R + 2 * r));
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[r][c] = dot2(sums[r][c], pairs[c], own);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      store(scores + r * kTileKeys + (group * kLanes + c * kLanes), sums[r][c]);
}

template <int R, class Next>
BATON_INLINE void score(const Rows& rows, int row, const KeyTile& tile, const Next& next,
                        float* scores) {
  const uint16_t* q = rows.q + int64_t(row) * rows.head_dim;
  for (int group = 0; group < kTileGroups; group += kMaxColumns)
    score_groups<R, kMaxColumns>(q, rows.head_dim, tile, next, group, scores);
}

BATON_INLINE F32 masked(F32 a, float otherwise, Visible visible, int lane) {
  return keep_lanes(a, splat(otherwise), visible.first - lane, visible.end - lane);
}

// Finishes a row's scores: its keys' scales, and -inf for what it does not see. Returns the largest
// of each lane.
template <bool kAll>
BATON_INLINE F32 finish_scores(const KeyTile& tile, Visible visible, float* scores) {
  F32 score[kTileGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kTileGroups; ++g) {
    score[g] = load(scores + g * kLanes);
    if (tile.key_scales != nullptr) score[g] = mul(score[g], load(tile.key_scales + g * kLanes));
    if constexpr (!kAll) score[g] = masked(score[g], kMinusInfinity, visible, g * kLanes);
    if (!kAll || tile.key_scales != nullptr) store(scores + g * kLanes, score[g]);
  }
  return max(max(score[0], score[1]), max(score[2], score[3]));
}

// A row's weights, 2^(score * factor + offset), from its scores; adds them to its sums.
template <bool kAll>
BATON_INLINE void make_weights(const KeyTile& tile, Visible visible, const float* scores,
                               float factor, float offset, float rescale, float* sums,
                               uint16_t* weights) {
  F32 weight[kTileGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kTileGroups; ++g) {
    weight[g] = exp2_of_weight(fma(load(scores + g * kLanes), splat(factor), splat(offset)));
    if constexpr (!kAll) weight[g] = masked(weight[g], 0.0f, visible, g * kLanes);
  }
  const F32 total = add(add(weight[0], weight[1]), add(weight[2], weight[3]));
  store(sums, fma(load(sums), splat(rescale), total));
#pragma GCC unroll 4
  for (int g = 0; g < kTileGroups; ++g) {
    if (tile.value_scales != nullptr) {
      weight[g] = mul(weight[g], load(tile.value_scales + g * kLanes));
      // A scale that nobody has written may be NaN.
      if constexpr (!kAll) weight[g] = masked(weight[g], 0.0f, visible, g * kLanes);
    }
    store_bf16(weights + g * kLanes, weight[g]);
  }
}

BATON_INLINE const uint16_t* value_pair(const KeyTile& tile, int key, int head_dim) {
  return tile.values[key / kKeyGroup] + int64_t(key % kKeyGroup / 2) * 2 * head_dim;
}

// out = out * rescale + weights times values of keys [begin, end) (both even), pair after pair, for
// R rows and C registers of dims from `dim` on.
template <int R, int C, class Next>
BATON_INLINE void weigh_dims(const KeyTile& tile, const Next& next, int begin, int end, int dim,
                             int head_dim, const uint16_t* weights, const float* rescale,
                             float* out) {
  F32 sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sums[r][c] = mul(load(out + r * head_dim + dim + c * kLanes), splat(rescale[r]));
  for (int key = begin; key < end;) {
    const int group_end = (key / kKeyGroup + 1) * kKeyGroup;
    const int stop = group_end < end ? group_end : end;
    const uint16_t* const values = tile.values[key / kKeyGroup];
    for (; key < stop; key += 2) {
      const int64_t first = int64_t(key % kKeyGroup) * head_dim + 2 * dim;
      B16x32 pairs[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        pairs[c] = load_pairs(values + first + c * 2 * kLanes);
        if constexpr (kFetches<Next>)
          __builtin_prefetch(
              next.values[key / kKeyGroup] + (first + c * 2 * kLanes) * next.element_bytes, 0, 2);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const B16x32 own = splat_pair(pair_of(weights + r * kTileKeys + key));
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[r][c] = dot2(sums[r][c], pairs[c], own);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + r * head_dim + dim + c * kLanes, sums[r][c]);
}

template <int R, class Next>
BATON_INLINE void weigh(const KeyTile& tile, const Next& next, int begin, int end, int head_dim,
                        const uint16_t* weights, const float* rescale, float* out) {
  int dim = 0;
  for (; dim + kMaxColumns * kLanes <= head_dim; dim += kMaxColumns * kLanes)
    weigh_dims<R, kMaxColumns>(tile, next, begin, end, dim, head_dim, weights, rescale, out);
  if constexpr (kMaxColumns > 1) {
    for (; dim < head_dim; dim += kLanes)
      weigh_dims<R, 1>(tile, next, begin, end, dim, head_dim, weights, rescale, out);
  }
}

// One row, any of its keys. A key whose neighbour the row does not see is half a pair.
BATON_INLINE void weigh_half_pair(const KeyTile& tile, int key, int head_dim,
                                  const uint16_t* weights, float* out) {
  const B16x32 own = splat_pair(pair_of(weights + key / 2 * 2));
  const uint16_t* values = value_pair(tile, key, head_dim);
  for (int d = 0; d < head_dim; d += kLanes) {
    const B16x32 both = load_pairs(values + 2 * d);
    const B16x32 one = key % 2 == 0 ? first_of_pairs(both) : second_of_pairs(both);
    store(out + d, dot2(load(out + d), one, own));
  }
}

__attribute__((noinline)) inline void weigh_alone(const KeyTile& tile, int begin, int end,
                                                  int head_dim, const uint16_t* weights,
                                                  float* out) {
  if (begin >= end) return;
  const int first = (begin + 1) / 2 * 2, last = end / 2 * 2;
  const float unchanged = 1.0f;
  if (begin < first) weigh_half_pair(tile, begin, head_dim, weights, out);
  if (first < last) weigh<1>(tile, NoTile{}, first, last, head_dim, weights, &unchanged, out);
  if (last < end && first <= last) weigh_half_pair(tile, last, head_dim, weights, out);
}

// A few rows' weights of a tile's keys, and what their earlier sums are to be multiplied with.
template <int R>
struct Weights {
  alignas(64) uint16_t of_keys[R][kTileKeys];
  alignas(64) float rescale[kLanes];
};

template <int R, bool kAll, class Next>
BATON_INLINE void weigh_keys(const KeyTile& tile, const Next& next, const Rows& rows, int row,
                             const Visible (&visible)[R], Weights<R>& weights) {
  alignas(64) float scores[R][kTileKeys];
  alignas(64) float offsets[kLanes];
  score<R>(rows, row, tile, next, scores[0]);
  F32 largest[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) largest[r] = finish_scores<kAll>(tile, visible[r], scores[r]);
  const F32 before = load(rows.peak + row);
  const F32 peak = keep_lanes(max(largest_of_each(largest), before), before, 0, R);
  store(rows.peak + row, peak);
  store(offsets, mul(peak, splat(-rows.log2_scale)));
  store(weights.rescale, exp2_of_weight(mul(sub(before, peak), splat(rows.log2_scale))));
  for (int r = 0; r < R; ++r) {
    // A row that has not seen a key yet has no peak to subtract.
    if (!kAll && visible[r].is_empty()) {
      weights.rescale[r] = 1.0f;
      continue;
    }
    make_weights<kAll>(tile, visible[r], scores[r], rows.log2_scale, offsets[r], weights.rescale[r],
                       rows.sums + int64_t(row + r) * kLanes, weights.of_keys[r]);
  }
}

// Rows [row, row + R) meet a tile that all of them see completely.
template <int R, class Next>
void attend_all(const KeyTile& tile, const Next& next, const Rows& rows, int row) {
  const Visible visible[R] = {};
  Weights<R> weights;
  weigh_keys<R, true>(tile, next, rows, row, visible, weights);
  weigh<R>(tile, next, 0, kTileKeys, rows.head_dim, weights.of_keys[0], weights.rescale,
           rows.out + int64_t(row) * rows.head_dim);
}

// The same for any tile. Rows that see nothing of it stay as they are.
template <int R>
void attend_some(const KeyTile& tile, const Rows& rows, int row) {
  const int head_dim = rows.head_dim;
  Visible visible[R];
  Visible joint = {0, kTileKeys};  // whole pairs that every row sees
  for (int r = 0; r < R; ++r) {
    visible[r] = visible_to(rows, row + r, tile);
    const int first = (visible[r].first + 1) / 2 * 2, end = visible[r].end / 2 * 2;
    joint = {first > joint.first ? first : joint.first, end < joint.end ? end : joint.end};
  }
  if (joint.is_empty()) joint = {0, 0};
  Weights<R> weights;
  weigh_keys<R, false>(tile, NoTile{}, rows, row, visible, weights);

  // Pair after pair for each row: what it sees before the joint pairs, these, and the rest.
  float* const out = rows.out + int64_t(row) * head_dim;
  for (int r = 0; r < R; ++r) {
    float* const own = out + int64_t(r) * head_dim;
    for (int d = 0; d < head_dim; d += kLanes)
      store(own + d, mul(load(own + d), splat(weights.rescale[r])));
    weights.rescale[r] = 1.0f;
    const int end = visible[r].end < joint.first ? visible[r].end : joint.first;
    weigh_alone(tile, visible[r].first, end, head_dim, weights.of_keys[r], own);
  }
  if (!joint.is_empty())
    weigh<R>(tile, NoTile{}, joint.first, joint.end, head_dim, weights.of_keys[0], weights.rescale,
             out);
  for (int r = 0; r < R; ++r) {
    const int begin = visible[r].first > joint.end ? visible[r].first : joint.end;
    weigh_alone(tile, begin, visible[r].end, head_dim, weights.of_keys[r],
                out + int64_t(r) * head_dim);
  }
}

// What a row sees never shrinks at its end nor grows at its beginning from one row to the next.
template <int R, class Next>
BATON_INLINE void attend(const KeyTile& tile, const Next& next, const Rows& rows, int row) {
  const int last = row + R - 1;
  if (rows.first[last] <= tile.begin && rows.end[row] >= tile.begin + kTileKeys)
    return attend_all<R>(tile, next, rows, row);
  if (rows.end[last] > tile.begin && rows.first[row] < tile.begin + kTileKeys)
    attend_some<R>(tile, rows, row);
}

}  // namespace baton::BATON_ISA
