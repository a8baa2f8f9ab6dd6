// What the kernels of one instruction set offer, and the data that they work on.
//
// Each function computes a range of rows or pieces; spreading them over threads is the caller's
// (decoder.cpp, bindings.cpp). Row-deterministic: an output row has the same bits whatever the
// range, the other rows, the threads and the instruction set.
//
// Shapes: T tokens (rows), K features in, F features out, H query heads, D head dim, S block size.
#pragma once

#include <cstdint>

namespace baton {

class ThreadPool;

constexpr int kPanelRows = 16;  // output features side by side in a packed weight, one per lane
constexpr int kGroup = 32;      // neighbouring activations that share a scale
constexpr int kSumGroup = 16;   // neighbouring activations that share a sum
constexpr int kMaxHeadDim = 256;

// The form of a packed weight's values.
enum class WeightForm : int32_t {
  kUint4 = 0,  // unsigned 4 bit
  kUint8 = 1,  // unsigned 8 bit
  kBf16 = 2,
  kF32 = 3,
};

// A weight matrix F x K in panels of 16 output features (the last filled up with zeros).
//
// kUint4, kUint8: value = scale * (q - zero_point) + min, scale and min per `group` inputs. A panel
// is a run of groups, each [16 scales][16 mins, if any][values]; scales and mins are half or float.
// Values lie so that lane f of a register holds 4 consecutive inputs of feature f: byte 4f + i of
// chunk c is input 4c + i (kUint8); for kUint4 the low nibble is input 8c + i, the high 8c + 4 + i.
// A scale per output feature is a group of K inputs; its panel begins with [16 scales].
// kBf16: pairs of inputs, [K/2][16][2]. kF32: [K][16].
struct PackedWeight {
  WeightForm form;
  int32_t num_out;     // F
  int32_t num_in;      // K
  int32_t group;       // 16, 32 or K; unused for kBf16 and kF32
  int32_t zero_point;  // 0 where there are mins
  bool has_half_scales;
  bool has_min;
  int64_t panel_bytes;
  const uint8_t* data;  // ceil(F / 16) panels, 64-byte aligned
};

// How activations are rounded on their way into a product; a weight's form decides.
enum class ActivationForm : int32_t {
  kInt8Group = 0,  // int8 per group of 32
  kInt8Row = 1,    // int8 per row
  kBf16 = 2,
  kF32 = 3,
};

// T x K activations. For int8: value = scale * q with scale = max|x| / 127 of the group or row;
// with `has_remainder`, row 2i is input row i so rounded and row 2i + 1 what that rounding left,
// rounded in turn: 2T rows, which a product adds up again. Int8 rows lie in strips of `strip` rows
// side by side, so that a product finds what it multiplies a weight with in one place:
// [T/strip][K/4][strip][4] values, and the rest of a row likewise.
struct Activations {
  ActivationForm form;
  bool has_remainder;  // int8 only
  int32_t num_in;      // K
  int32_t strip;       // int8 only; even with a remainder
  int8_t* values;      // T/strip x K/4 x strip x 4
  float* scales;       // T/strip x K/32 x strip (kInt8Group), or T
  int32_t* sums;       // T/strip x K/16 x strip sums of q (kInt8Group), or T (kInt8Row)
  float* scaled_sums;  // T/strip x K/32 x strip: scale * sum of the group's q (kInt8Group)
  uint16_t* bf16;      // T x K (K even)
  float* f32;          // T x K

  // Element of an array that has `per_row` elements of each row: the row's first. The others are
  // `strip` elements apart.
  int64_t first_of(int row, int per_row) const {
    return int64_t(row / strip) * strip * per_row + row % strip;
  }
};

// What becomes of a product's rows. `kSiluMul`: the weight's panels come in pairs, 16 gate features
// then 16 up features, and y = silu(gate) * up has half as many columns.
enum class Epilogue : int32_t { kStore = 0, kAdd = 1, kSiluMul = 2 };

struct LinearArgs {
  const PackedWeight* weight;
  const Activations* x;
  const float* bias;  // F, or null; in the order of the packed rows
  float* y;           // first row, first column of the result
  int64_t y_stride;   // floats
  Epilogue epilogue;
};

enum class KvForm : int32_t { kBf16 = 0, kInt8 = 1 };

// One layer of the KV pool. A layer in a block is [K][V][scales of K][scales of V], K and V per kv
// head: keys [S/16][D/2][16][2] (a register holds a pair of dims of 16 keys), values [S/2][D][2] (a
// register holds 16 dims of a pair of keys). Scales (kInt8 only): float, [kv heads][S].
struct KvLayer {
  uint8_t* pool;  // block 0
  int64_t block_bytes;
  int64_t layer_offset;  // in a block, bytes
  int32_t block_size;    // S, a multiple of 16
  int32_t num_kv_heads;
  int32_t head_dim;  // D, a multiple of 16
  KvForm form;
};

// Rows [start, start + num_tokens) of a batch are positions [context_len - num_tokens,
// context_len).
struct Span {
  int32_t start;
  int32_t num_tokens;
  int32_t context_len;
  const int32_t* blocks;  // block ids of positions [0, context_len)
};

struct RotaryArgs {
  float* qkv;  // T x (H + 2 kv heads) * D: rotated in place
  int64_t qkv_stride;
  int32_t num_heads;
  const float* q_norm;  // D, or null: RMS norm per head before rotation
  const float* k_norm;
  float norm_eps;
  const float* cos;  // T x D/2
  const float* sin;
  const int64_t* slots;  // T: block id * S + offset, where the row's KV goes
};

struct AttentionArgs {
  const float* q;  // T rows, head h at column h * D
  int64_t q_stride;
  float* out;  // T x H * D
  int64_t out_stride;
  int32_t num_heads;
  float scale;
  int32_t window;  // keys that a query sees at most; 0: all
  const Span* spans;
  int32_t num_spans;
};

struct KernelTable {
  const char* name;

  // Columns [0, num_in) of rows [begin, end) of x in the form that `out` names.
  void (*quantize)(const float* x, int64_t x_stride, int begin, int end, const Activations& out);
  void (*rms_norm)(const float* x, int64_t x_stride, const float* weight, float eps, int num_in,
                   int begin, int end, float* y, int64_t y_stride);
  // Both at once; nothing of the normalized row is written but the rounded form.
  void (*rms_norm_quantize)(const float* x, int64_t x_stride, const float* weight, float eps,
                            int begin, int end, const Activations& out);
  // Rows [row_begin, row_end), panels [panel_begin, panel_end); panel_begin is even.
  void (*linear)(const LinearArgs& args, int row_begin, int row_end, int panel_begin,
                 int panel_end);
  // Row ids[i] of a packed weight as floats, for i in [begin, end).
  void (*embed)(const PackedWeight& table, const int64_t* ids, int begin, int end, float* y,
                int64_t y_stride);
  void (*silu_mul)(const float* gate, const float* up, int64_t stride, int num, int begin, int end,
                   float* y, int64_t y_stride);
  // Norms and rotates queries and keys of rows [begin, end); writes keys and values to the pool.
  void (*rotary_write)(const RotaryArgs& args, const KvLayer& kv, int begin, int end);
  // Spreads itself over the pool's threads.
  void (*attention)(const AttentionArgs& args, const KvLayer& kv, ThreadPool& threads);
};

// The tables that this build has; `find_kernels` returns the named one, or with null the best that
// the CPU can run. Returns null for a name that is unknown or that the CPU cannot run.
const KernelTable* find_kernels(const char* name);

}  // namespace baton
