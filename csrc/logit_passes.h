// The passes over a row of logits that read all of it: what sampling spends its time on.
//
// Weights are whole numbers of quanta (2^-40 of the best token's weight) held in floats, so their
// sums are exact in any order, and every filter and draw behind them is integer arithmetic.
// Elsewhere: what becomes of weights and candidates (sampler.cpp).
//
// V is the number of logits in a row; B = ceil(V / 1024) tiles.
#pragma once

#include <cstdint>

namespace baton {

constexpr int kTile = 1024;      // neighbouring logits that are summed together
constexpr int kTileMaxima = 16;  // of one tile: number i is the largest of logits i, i + 16, ...
constexpr float kBestWeight = 0x1p40f;

// A token that may be among the wanted ones. Keys order as the values that they stand for.
struct Candidate {
  uint32_t key;
  int32_t id;
};

// Denormals are zeros (DenormalsOff), and so is a negative zero.
struct LogitPasses {
  const char* name;

  // The largest values, B x kTileMaxima. False if there is a NaN; maxima are then anything.
  bool (*scan)(const float* values, int num, float* maxima);
  // weights[i] = nearest(2^40 * 2^((logits[i] - best) * scale)), ties to even; 0 where that is
  // below 2^-127. `weights` has room for V rounded up to 16. Sums: one for each tile.
  void (*weigh)(const float* logits, int num, float best, float scale, float* weights,
                float* maxima, int64_t* sums);
  // Those of value `least` or more, by id; returns how many.
  int (*collect)(const float* values, int num, float least, Candidate* found);
};

// Null for a name that find_kernels does not know.
const LogitPasses* find_logit_passes(const char* name);

}  // namespace baton
