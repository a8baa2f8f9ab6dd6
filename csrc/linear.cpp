// Matrix products of a few or many rows with a packed weight: y = x Wᵀ.
//
// A tile is MR rows times two panels (32 output features), its sums in registers. Each output has a
// lane of its own, which takes its inputs in order: groups one after the other, and in a group the
// exact integer sum. How rows are cut into tiles therefore never shows.
// Tiles of grouped integers with more than kRowsOfPairs rows take one panel after the other: two
// would need more sums than there are registers.
// Elsewhere: how activations are rounded (rows.cpp), threads (decoder.cpp), the layout (kernels.h).
#include "activation.h"
#include "kernels.h"
#include "simd.h"

namespace baton::BATON_ISA {
namespace {

constexpr int kPanels = 2;

// With so few tiles of rows, memory is slower than arithmetic.
constexpr int kFewTiles = 8;

// How many rows a tile can have, by the number of registers (portable: by how long compilers take).
// Integer sums of groups need a second set of registers beside the float sums: two panels side by
// side fit for kRowsOfPairs rows.
#if defined(BATON_ISA_avx512)
constexpr int kIntegerRows = 8, kFloatRows = 8, kRowsOfPairs = 6;
#elif defined(BATON_ISA_avx2)
constexpr int kIntegerRows = 4, kFloatRows = 3, kRowsOfPairs = 2;
#else
constexpr int kIntegerRows = 2, kFloatRows = 2, kRowsOfPairs = 2;
#endif

BATON_INLINE int32_t four_bytes(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return four;
}

BATON_INLINE uint32_t pair_at(const uint16_t* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return pair;
}

BATON_INLINE int smaller(int a, int b) { return a < b ? a : b; }

template <bool kHalf>
BATON_INLINE F32 load_scales(const uint8_t* p) {
  if constexpr (kHalf) return load_half(reinterpret_cast<const uint16_t*>(p));
  return load(reinterpret_cast<const float*>(p));
}

// How far, in bytes.
constexpr int64_t kPrefetchAhead = 4096;

// Few rows ask for weights faster than the processor's own prefetcher, which stops at every page,
// brings them. `ahead` is where the weights needed next lie, in bytes from here; 0: do not fetch.
// They go into the second-level cache: the first has too few outstanding misses for memory's speed.
template <int kBytes>
BATON_INLINE void prefetch(const uint8_t* p, int64_t ahead) {
  if (ahead == 0) return;
#pragma GCC unroll 8
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(p + ahead + i, 0, 2);
}

template <int kBits, int kWeightGroup, bool kHalf, bool kMin>
struct GroupedTile {
  static constexpr int kMaxRows = kIntegerRows;
  static constexpr bool kIsInteger = true;

  template <int MR>
  static BATON_INLINE void run(const PackedWeight& w, const Activations& x, int row,
                               const uint8_t* const panels[kPanels], int64_t ahead,
                               F32 y[MR][kPanels]) {
    if constexpr (MR <= kRowsOfPairs) {
      run_panels<MR, kPanels>(w, x, row, panels, ahead, y);
    } else {
      for (int p = 0; p < kPanels; ++p) {
        F32 own[MR][1];
        run_panels<MR, 1>(w, x, row, panels + p, ahead, own);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) y[r][p] = own[r][0];
      }
    }
  }

 private:
  // P panels side by side.
  template <int MR, int P>
  static BATON_INLINE void run_panels(const PackedWeight& w, const Activations& x, int row,
                                      const uint8_t* const panels[], int64_t ahead, F32 y[MR][P]) {
    constexpr int kScaleBytes = kPanelRows * (kHalf ? 2 : 4);
    constexpr int kHeader = kScaleBytes * (kMin ? 2 : 1);
    constexpr int kGroupBytes = kHeader + kPanelRows * kWeightGroup * kBits / 8;
    constexpr int kParts = kGroup / kWeightGroup;
    const int num_groups = w.num_in / kGroup, strip = x.strip;
    const int8_t* inputs = x.values + 4 * x.first_of(row, w.num_in / 4);
    const float* scales = x.scales + x.first_of(row, num_groups);
    const float* scaled_sums = x.scaled_sums + x.first_of(row, num_groups);
    const int32_t* sums = x.sums + x.first_of(row, 2 * num_groups);
    const uint8_t* at[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) at[p] = panels[p];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) y[r][p] = zero();
    for (int g = 0; g < num_groups; ++g) {
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        I32 acc[MR][P];
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          I32 start = izero();
          if constexpr (!kMin) {
            const int32_t sum = kParts == 1 ? sums[r] + sums[strip + r] : sums[part * strip + r];
            start = isplat(-w.zero_point * sum);
          }
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p) acc[r][p] = start;
        }
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) prefetch<kGroupBytes>(at[p], ahead);
        inputs = multiply<MR, P>(at, kHeader, inputs, strip, acc);
        F32 scale[P], min[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) scale[p] = load_scales<kHalf>(at[p]);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const F32 own = splat(scales[r]);
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p)
            y[r][p] = fma(mul(to_float(acc[r][p]), own), scale[p], y[r][p]);
        }
        if constexpr (kMin) {
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p) min[p] = load_scales<kHalf>(at[p] + kScaleBytes);
#pragma GCC unroll 8
          for (int r = 0; r < MR; ++r) {
            const F32 sum = splat(scaled_sums[r]);
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) y[r][p] = fma(sum, min[p], y[r][p]);
          }
        }
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) at[p] += kGroupBytes;
      }
      scales += strip;
      scaled_sums += strip;
      sums += 2 * strip;
    }
  }

  // One group; returns where the inputs of the next begin.
  template <int MR, int P>
  static BATON_INLINE const int8_t* multiply(const uint8_t* const at[P], int header,
                                             const int8_t* inputs, int strip, I32 acc[MR][P]) {
    constexpr int kChunkInputs = 32 / kBits;
#pragma GCC unroll 8
    for (int c = 0; c < kWeightGroup / kChunkInputs; ++c) {
      U8x64 raw[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) raw[p] = load_bytes(at[p] + header + 64 * c);
#pragma GCC unroll 2
      for (int half = 0; half < 8 / kBits; ++half) {
        U8x64 values[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p)
          values[p] = kBits == 8 ? raw[p] : half == 0 ? low_nibbles(raw[p]) : high_nibbles(raw[p]);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const int32_t four = four_bytes(inputs + 4 * r);
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p)
            acc[r][p] = kBits == 8 ? dot4(acc[r][p], values[p], four)
                                   : dot4_nibbles(acc[r][p], values[p], four);
        }
        inputs += 4 * strip;
      }
    }
    return inputs;
  }
};

// 8 bit with one scale per output feature and one per row: a single integer sum over all inputs.
struct PerChannelTile {
  static constexpr int kMaxRows = kIntegerRows;
  static constexpr bool kIsInteger = true;

  template <int MR>
  static BATON_INLINE void run(const PackedWeight& w, const Activations& x, int row,
                               const uint8_t* const panels[kPanels], int64_t ahead,
                               F32 y[MR][kPanels]) {
    const int8_t* inputs = x.values + 4 * x.first_of(row, w.num_in / 4);
    const uint8_t* p0 = panels[0] + 4 * kPanelRows;
    const uint8_t* p1 = panels[1] + 4 * kPanelRows;
    I32 acc[MR][kPanels];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) acc[r][0] = acc[r][1] = isplat(-w.zero_point * x.sums[row + r]);
#pragma GCC unroll 2
    for (int c = 0; c < w.num_in / 4; ++c, inputs += 4 * x.strip) {
      const U8x64 w0 = load_bytes(p0 + 64 * c), w1 = load_bytes(p1 + 64 * c);
      prefetch<64>(p0 + 64 * c, ahead);
      prefetch<64>(p1 + 64 * c, ahead);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const int32_t four = four_bytes(inputs + 4 * r);
        acc[r][0] = dot4(acc[r][0], w0, four);
        acc[r][1] = dot4(acc[r][1], w1, four);
      }
    }
    const F32 scale0 = load_scales<false>(panels[0]), scale1 = load_scales<false>(panels[1]);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const F32 own = splat(x.scales[row + r]);
      y[r][0] = mul(mul(to_float(acc[r][0]), own), scale0);
      y[r][1] = mul(mul(to_float(acc[r][1]), own), scale1);
    }
  }
};

struct Bf16Tile {
  static constexpr int kMaxRows = kFloatRows;
  static constexpr bool kIsInteger = false;

  template <int MR>
  static BATON_INLINE void run(const PackedWeight& w, const Activations& x, int row,
                               const uint8_t* const panels[kPanels], int64_t ahead,
                               F32 y[MR][kPanels]) {
    const int num_in = w.num_in;
    const uint16_t* inputs = x.bf16 + int64_t(row) * num_in;
    const uint16_t* p0 = reinterpret_cast<const uint16_t*>(panels[0]);
    const uint16_t* p1 = reinterpret_cast<const uint16_t*>(panels[1]);
#pragma GCC unroll 2
    for (int k = 0; k < num_in / 2; ++k) {
      const B16x32 w0 = load_pairs(p0 + 32 * k), w1 = load_pairs(p1 + 32 * k);
      prefetch<64>(reinterpret_cast<const uint8_t*>(p0 + 32 * k), ahead);
      prefetch<64>(reinterpret_cast<const uint8_t*>(p1 + 32 * k), ahead);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const B16x32 pair = splat_pair(pair_at(inputs + int64_t(r) * num_in + 2 * k));
        y[r][0] = dot2(y[r][0], w0, pair);
        y[r][1] = dot2(y[r][1], w1, pair);
      }
    }
  }
};

struct F32Tile {
  static constexpr int kMaxRows = kFloatRows;
  static constexpr bool kIsInteger = false;

  template <int MR>
  static BATON_INLINE void run(const PackedWeight& w, const Activations& x, int row,
                               const uint8_t* const panels[kPanels], int64_t ahead,
                               F32 y[MR][kPanels]) {
    const int num_in = w.num_in;
    const float* inputs = x.f32 + int64_t(row) * num_in;
    const float* p0 = reinterpret_cast<const float*>(panels[0]);
    const float* p1 = reinterpret_cast<const float*>(panels[1]);
#pragma GCC unroll 2
    for (int k = 0; k < num_in; ++k) {
      const F32 w0 = load(p0 + 16 * k), w1 = load(p1 + 16 * k);
      prefetch<64>(reinterpret_cast<const uint8_t*>(p0 + 16 * k), ahead);
      prefetch<64>(reinterpret_cast<const uint8_t*>(p1 + 16 * k), ahead);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const F32 one = splat(inputs[int64_t(r) * num_in + k]);
        y[r][0] = fma(one, w0, y[r][0]);
        y[r][1] = fma(one, w1, y[r][1]);
      }
    }
  }
};

BATON_INLINE F32 load_bias(const LinearArgs& args, int column) {
  if (args.bias == nullptr) return zero();
  const int num_valid = args.weight->num_out - column;
  if (num_valid >= kLanes) return load(args.bias + column);
  float own[kLanes] = {};
  std::memcpy(own, args.bias + column, sizeof(float) * num_valid);
  return load(own);
}

BATON_INLINE void write(const LinearArgs& args, int row, int column, F32 y) {
  float* at = args.y + row * args.y_stride + column;
  const int num_valid = args.weight->num_out - column;
  if (num_valid >= kLanes) {
    store(at, args.epilogue == Epilogue::kAdd ? add(load(at), y) : y);
    return;
  }
  float result[kLanes];
  store(result, y);
  for (int i = 0; i < num_valid; ++i)
    at[i] = args.epilogue == Epilogue::kAdd ? at[i] + result[i] : result[i];
}

// Rows of activations that make one row of the result.
BATON_INLINE int rows_per_output(const LinearArgs& args) { return args.x->has_remainder ? 2 : 1; }

// What becomes of a tile's sums. Apart from the tiles so that it is compiled once.
__attribute__((noinline)) void finish(const LinearArgs& args, int row, int num_rows, int panel,
                                      bool has_second, const float (*sums)[kPanels][kLanes]) {
  const int step = rows_per_output(args);
  const int column = panel * kPanelRows;
  const F32 bias0 = load_bias(args, column);
  const F32 bias1 = has_second ? load_bias(args, column + kPanelRows) : zero();
  row /= step;
  for (int r = 0; r < num_rows / step; ++r) {
    F32 y0 = load(sums[r * step][0]), y1 = load(sums[r * step][1]);
    if (step == 2) {
      y0 = add(y0, load(sums[r * step + 1][0]));
      y1 = add(y1, load(sums[r * step + 1][1]));
    }
    if (args.bias != nullptr) {
      y0 = add(y0, bias0);
      y1 = add(y1, bias1);
    }
    if (args.epilogue == Epilogue::kSiluMul) {
      store(args.y + (row + r) * args.y_stride + column / 2, mul(silu(y0), y1));
      continue;
    }
    write(args, row + r, column, y0);
    if (has_second) write(args, row + r, column + kPanelRows, y1);
  }
}

template <class Tile, int MR>
__attribute__((noinline)) void run_tile(const LinearArgs& args, int row, int panel, int panel_end,
                                        int64_t ahead) {
  const PackedWeight& w = *args.weight;
  const bool has_second = panel + 1 < panel_end;
  const uint8_t* first = w.data + panel * w.panel_bytes;
  // An odd last panel is multiplied twice and written once.
  const uint8_t* const panels[kPanels] = {first, has_second ? first + w.panel_bytes : first};
  F32 y[MR][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) y[r][0] = y[r][1] = zero();
  Tile::template run<MR>(w, *args.x, row, panels, ahead, y);
  alignas(64) float sums[MR][kPanels][kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    store(sums[r][0], y[r][0]);
    store(sums[r][1], y[r][1]);
  }
  finish(args, row, MR, panel, has_second, sums);
}

template <class Tile, int MR = Tile::kMaxRows>
BATON_INLINE void run_tile_of(int num_rows, const LinearArgs& args, int row, int panel,
                              int panel_end, int64_t ahead) {
  if (num_rows == MR) {
    run_tile<Tile, MR>(args, row, panel, panel_end, ahead);
  } else if constexpr (MR > 1) {
    run_tile_of<Tile, MR - 1>(num_rows, args, row, panel, panel_end, ahead);
  }
}

template <class Tile>
void multiply(const LinearArgs& args, int row_begin, int row_end, int panel_begin, int panel_end) {
  // A tile of integers has rows of one strip.
  const int step = rows_per_output(args);
  const int whole = Tile::kIsInteger ? args.x->strip / step : row_end - row_begin;
  const int most = Tile::kMaxRows / step;
  const int tiles_per_whole = (whole + most - 1) / most;
  const int num_tiles = (row_end - row_begin + whole - 1) / whole * tiles_per_whole;
  const auto run = [&](int tile, int panel, int64_t ahead) {
    const int first = row_begin + tile / tiles_per_whole * whole;
    const int part = tile % tiles_per_whole;
    const int begin = first + whole * part / tiles_per_whole;
    const int end = smaller(first + whole * (part + 1) / tiles_per_whole, row_end);
    if (begin < end)
      run_tile_of<Tile>((end - begin) * step, args, begin * step, panel, panel_end, ahead);
  };
  if (num_tiles <= kFewTiles) {
    // Weights come from memory: each pair is used for all rows while the next one is fetched.
    for (int panel = panel_begin; panel < panel_end; panel += kPanels)
      for (int tile = 0; tile < num_tiles; ++tile) run(tile, panel, tile == 0 ? kPrefetchAhead : 0);
  } else {
    // The rows of a tile stay in the first-level cache while panels stream by from the second.
    for (int tile = 0; tile < num_tiles; ++tile)
      for (int panel = panel_begin; panel < panel_end; panel += kPanels) run(tile, panel, 0);
  }
}

}  // namespace

void linear(const LinearArgs& args, int row_begin, int row_end, int panel_begin, int panel_end) {
  const PackedWeight& w = *args.weight;
  const auto run = [&](auto tile) {
    multiply<decltype(tile)>(args, row_begin, row_end, panel_begin, panel_end);
  };
  const bool is_half = w.has_half_scales;
  switch (w.form) {
    case WeightForm::kBf16:
      return run(Bf16Tile{});
    case WeightForm::kF32:
      return run(F32Tile{});
    case WeightForm::kUint4:
      if (w.has_min)
        return is_half ? run(GroupedTile<4, 32, true, true>{})
                       : run(GroupedTile<4, 32, false, true>{});
      return is_half ? run(GroupedTile<4, 32, true, false>{})
                     : run(GroupedTile<4, 32, false, false>{});
    case WeightForm::kUint8:
      if (w.group == w.num_in && args.x->form == ActivationForm::kInt8Row)
        return run(PerChannelTile{});
      if (w.group == 16)
        return is_half ? run(GroupedTile<8, 16, true, false>{})
                       : run(GroupedTile<8, 16, false, false>{});
      if (w.has_min)
        return is_half ? run(GroupedTile<8, 32, true, true>{})
                       : run(GroupedTile<8, 32, false, true>{});
      return is_half ? run(GroupedTile<8, 32, true, false>{})
                     : run(GroupedTile<8, 32, false, false>{});
  }
}

}  // namespace baton::BATON_ISA
