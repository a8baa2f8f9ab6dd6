// Work on rows of activations: norms, rounding for a product, embeddings, the gate of the MLP.
//
// Elsewhere: products (linear.cpp), rotation and the KV cache (kv_write.cpp).
#include "activation.h"
#include "kernels.h"
#include "simd.h"

namespace baton::BATON_ISA {
namespace {

struct PlainRow {
  const float* x;
  BATON_INLINE F32 at(int i) const { return load(x + i); }
};

struct NormedRow {
  const float* x;
  const float* weight;
  float inverse;
  BATON_INLINE F32 at(int i) const {
    return mul(mul(load(x + i), splat(inverse)), load(weight + i));
  }
};

// The int8 values of a row in its strip.
struct StripRow {
  int8_t* values;
  int stride;  // bytes from four inputs to the next four

  BATON_INLINE StripRow(const Activations& x, int row)
      : values(x.values + 4 * x.first_of(row, x.num_in / 4)), stride(4 * x.strip) {}

  BATON_INLINE void write(int i, I32 q) const {
    int8_t lanes[kLanes];
    store_s8(lanes, q);
    for (int j = 0; j < kLanes; j += 4) std::memcpy(values + (i + j) / 4 * stride, lanes + j, 4);
  }
  BATON_INLINE F32 read(int i) const {
    int8_t lanes[kLanes];
    for (int j = 0; j < kLanes; j += 4) std::memcpy(lanes + j, values + (i + j) / 4 * stride, 4);
    return load_s8(lanes);
  }
};

// What rounding left of a row.
template <class Row>
struct Remainder {
  const Row& row;
  StripRow rounded;
  const float* scales;
  int group;
  int stride;  // from one group's scale to the next
  BATON_INLINE F32 at(int i) const {
    return fma(splat(-scales[i / group * stride]), rounded.read(i), row.at(i));
  }
};

template <class Row>
BATON_INLINE void quantize_groups(const Row& row, int index, const Activations& out) {
  const int num_groups = out.num_in / kGroup, strip = out.strip;
  const StripRow values(out, index);
  float* scale = out.scales + out.first_of(index, num_groups);
  float* scaled_sum = out.scaled_sums + out.first_of(index, num_groups);
  int32_t* sum = out.sums + out.first_of(index, 2 * num_groups);
  for (int g = 0; g < num_groups; ++g) {
    const F32 low = row.at(g * kGroup), high = row.at(g * kGroup + kLanes);
    const Int8Rounding rounding(largest_magnitude(larger_magnitude(abs(low), high)));
    const I32 low_q = rounding.round(low), high_q = rounding.round(high);
    values.write(g * kGroup, low_q);
    values.write(g * kGroup + kLanes, high_q);
    const int32_t low_sum = isum(low_q), high_sum = isum(high_q);
    sum[2 * g * strip] = low_sum;
    sum[(2 * g + 1) * strip] = high_sum;
    scale[g * strip] = rounding.scale;
    scaled_sum[g * strip] = rounding.scale * float(low_sum + high_sum);
  }
}

template <class Row>
BATON_INLINE void quantize_row(const Row& row, int index, const Activations& out) {
  F32 magnitudes = zero();
  for (int i = 0; i < out.num_in; i += kLanes) magnitudes = larger_magnitude(magnitudes, row.at(i));
  const Int8Rounding rounding(largest_magnitude(magnitudes));
  I32 total = izero();
  const StripRow values(out, index);
  for (int i = 0; i < out.num_in; i += kLanes) {
    const I32 q = rounding.round(row.at(i));
    values.write(i, q);
    total = iadd(total, q);
  }
  out.scales[index] = rounding.scale;
  out.sums[index] = isum(total);
}

template <class Row>
BATON_INLINE void quantize_once(const Row& row, int index, const Activations& out) {
  if (out.form == ActivationForm::kInt8Group) return quantize_groups(row, index, out);
  quantize_row(row, index, out);
}

template <class Row>
BATON_INLINE void quantize_fully(const Row& row, int index, const Activations& out) {
  if (!out.has_remainder) return quantize_once(row, index, out);
  quantize_once(row, 2 * index, out);
  const StripRow rounded(out, 2 * index);
  const bool is_grouped = out.form == ActivationForm::kInt8Group;
  const float* scales =
      out.scales + (is_grouped ? out.first_of(2 * index, out.num_in / kGroup) : 2 * index);
  const int group = is_grouped ? kGroup : out.num_in;
  quantize_once(Remainder<Row>{row, rounded, scales, group, out.strip}, 2 * index + 1, out);
}

template <class Row>
BATON_INLINE void round_row(const Row& row, int index, const Activations& out) {
  const int64_t offset = int64_t(index) * out.num_in;
  switch (out.form) {
    case ActivationForm::kInt8Group:
    case ActivationForm::kInt8Row:
      return quantize_fully(row, index, out);
    case ActivationForm::kBf16:
      for (int i = 0; i < out.num_in; i += kLanes) store_bf16(out.bf16 + offset + i, row.at(i));
      return;
    case ActivationForm::kF32:
      for (int i = 0; i < out.num_in; i += kLanes) store(out.f32 + offset + i, row.at(i));
  }
}

// One feature's values, from the layout that PackedWeight describes.
void unpack_integers(const PackedWeight& w, const uint8_t* panel, int lane, float* y) {
  const int scale_bytes = w.has_half_scales ? 2 : 4;
  const int header = kPanelRows * scale_bytes * (w.has_min ? 2 : 1);
  const bool is_nibbles = w.form == WeightForm::kUint4;
  const int chunk_inputs = is_nibbles ? 8 : 4;
  const auto header_value = [&](int index) {
    const uint8_t* at = panel + index * scale_bytes;
    if (w.has_half_scales) return float_of_half(*reinterpret_cast<const uint16_t*>(at));
    return *reinterpret_cast<const float*>(at);
  };
  for (int input = 0; input < w.num_in; input += w.group) {
    const float scale = header_value(lane);
    const float min = w.has_min ? header_value(kPanelRows + lane) : 0.0f;
    const auto value = [&](int q) {
      const float scaled = scale * float(q - w.zero_point);
      return w.has_min ? scaled + min : scaled;
    };
    const uint8_t* bytes = panel + header + 4 * lane;
    for (int i = 0; i < w.group; i += chunk_inputs, bytes += 4 * kPanelRows) {
      float* out = y + input + i;
      for (int j = 0; j < 4; ++j) {
        out[j] = value(is_nibbles ? bytes[j] & 15 : bytes[j]);
        if (is_nibbles) out[4 + j] = value(bytes[j] >> 4);
      }
    }
    panel += header + kPanelRows * w.group * (is_nibbles ? 4 : 8) / 8;
  }
}

void unpack_feature(const PackedWeight& w, int64_t feature, float* y) {
  const uint8_t* panel = w.data + feature / kPanelRows * w.panel_bytes;
  const int lane = int(feature % kPanelRows);
  if (w.form == WeightForm::kF32) {
    const float* values = reinterpret_cast<const float*>(panel) + lane;
    for (int i = 0; i < w.num_in; ++i) y[i] = values[i * kPanelRows];
  } else if (w.form == WeightForm::kBf16) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(panel) + 2 * lane;
    for (int i = 0; i < w.num_in; ++i) y[i] = float_of_bf16(pairs[i / 2 * 2 * kPanelRows + i % 2]);
  } else {
    unpack_integers(w, panel, lane, y);
  }
}

}  // namespace

void quantize(const float* x, int64_t x_stride, int begin, int end, const Activations& out) {
  for (int row = begin; row < end; ++row) round_row(PlainRow{x + row * x_stride}, row, out);
}

void rms_norm(const float* x, int64_t x_stride, const float* weight, float eps, int num_in,
              int begin, int end, float* y, int64_t y_stride) {
  for (int row = begin; row < end; ++row) {
    const float* own = x + row * x_stride;
    const NormedRow normed{own, weight, inverse_rms(own, num_in, eps)};
    for (int i = 0; i < num_in; i += kLanes) store(y + row * y_stride + i, normed.at(i));
  }
}

void rms_norm_quantize(const float* x, int64_t x_stride, const float* weight, float eps, int begin,
                       int end, const Activations& out) {
  for (int row = begin; row < end; ++row) {
    const float* own = x + row * x_stride;
    round_row(NormedRow{own, weight, inverse_rms(own, out.num_in, eps)}, row, out);
  }
}

void embed(const PackedWeight& table, const int64_t* ids, int begin, int end, float* y,
           int64_t y_stride) {
  for (int row = begin; row < end; ++row) unpack_feature(table, ids[row], y + row * y_stride);
}

void silu_mul(const float* gate, const float* up, int64_t stride, int num, int begin, int end,
              float* y, int64_t y_stride) {
  for (int row = begin; row < end; ++row)
    for (int i = 0; i < num; i += kLanes)
      store(y + row * y_stride + i,
            mul(silu(load(gate + row * stride + i)), load(up + row * stride + i)));
}

}  // namespace baton::BATON_ISA
