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

constexpr float kMaxInt8 = 127.0f;

// The factor is the reciprocal, as GGUF's own formats for activations have it (Q8_1 of ggml).
BATON_INLINE float inverse_scale(float magnitude) {
  return magnitude > 0.0f ? kMaxInt8 / magnitude : 0.0f;
}

template <class Row>
BATON_INLINE void quantize_groups(const Row& row, int index, const Activations& out) {
  const int num_groups = out.num_in / kGroup;
  int8_t* values = out.values + int64_t(index) * out.num_in;
  float* scales = out.scales + int64_t(index) * num_groups;
  float* scaled_sums = out.scaled_sums + int64_t(index) * num_groups;
  int32_t* sums = out.sums + int64_t(index) * 2 * num_groups;
  for (int g = 0; g < num_groups; ++g) {
    const F32 low = row.at(g * kGroup), high = row.at(g * kGroup + kLanes);
    const float magnitude = largest(max(abs(low), abs(high)));
    const float scale = magnitude / kMaxInt8;
    const F32 inverse = splat(inverse_scale(magnitude));
    const I32 low_q = to_int(mul(low, inverse)), high_q = to_int(mul(high, inverse));
    store_s8(values + g * kGroup, low_q);
    store_s8(values + g * kGroup + kLanes, high_q);
    const int32_t low_sum = isum(low_q), high_sum = isum(high_q);
    sums[2 * g] = low_sum;
    sums[2 * g + 1] = high_sum;
    scales[g] = scale;
    scaled_sums[g] = scale * float(low_sum + high_sum);
  }
}

template <class Row>
BATON_INLINE void quantize_row(const Row& row, int index, const Activations& out) {
  F32 magnitudes = zero();
  for (int i = 0; i < out.num_in; i += kLanes) magnitudes = max(magnitudes, abs(row.at(i)));
  const float magnitude = largest(magnitudes);
  const F32 inverse = splat(inverse_scale(magnitude));
  I32 total = izero();
  int8_t* values = out.values + int64_t(index) * out.num_in;
  for (int i = 0; i < out.num_in; i += kLanes) {
    const I32 q = to_int(mul(row.at(i), inverse));
    store_s8(values + i, q);
    total = iadd(total, q);
  }
  out.scales[index] = magnitude / kMaxInt8;
  out.sums[index] = isum(total);
}

template <class Row>
BATON_INLINE void round_row(const Row& row, int index, const Activations& out) {
  const int64_t offset = int64_t(index) * out.num_in;
  switch (out.form) {
    case ActivationForm::kInt8Group:
      return quantize_groups(row, index, out);
    case ActivationForm::kInt8Row:
      return quantize_row(row, index, out);
    case ActivationForm::kBf16:
      for (int i = 0; i < out.num_in; i += kLanes) store_bf16(out.bf16 + offset + i, row.at(i));
      return;
    case ActivationForm::kF32:
      for (int i = 0; i < out.num_in; i += kLanes) store(out.f32 + offset + i, row.at(i));
  }
}

// Value `input` of feature `feature`, from the layout that PackedWeight describes.
float value_at(const PackedWeight& w, int64_t feature, int input) {
  const uint8_t* panel = w.data + feature / kPanelRows * w.panel_bytes;
  const int lane = int(feature % kPanelRows);
  if (w.form == WeightForm::kF32)
    return reinterpret_cast<const float*>(panel)[input * kPanelRows + lane];
  if (w.form == WeightForm::kBf16) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(panel);
    return float_of_bf16(pairs[input / 2 * 2 * kPanelRows + 2 * lane + input % 2]);
  }
  const int scale_bytes = w.has_half_scales ? 2 : 4;
  const int header = kPanelRows * scale_bytes * (w.has_min ? 2 : 1);
  const int bits = w.form == WeightForm::kUint4 ? 4 : 8;
  const uint8_t* group =
      panel + int64_t(input / w.group) * (header + int64_t(kPanelRows) * w.group * bits / 8);
  const auto header_value = [&](int index) {
    const uint8_t* at = group + index * scale_bytes;
    if (w.has_half_scales) return float_of_half(*reinterpret_cast<const uint16_t*>(at));
    return *reinterpret_cast<const float*>(at);
  };
  const int i = input % w.group;
  int q;
  if (bits == 4) {
    const uint8_t both = group[header + i / 8 * 64 + 4 * lane + i % 4];
    q = i % 8 < 4 ? both & 15 : both >> 4;
  } else {
    q = group[header + i / 4 * 64 + 4 * lane + i % 4];
  }
  const float value = header_value(lane) * float(q - w.zero_point);
  return w.has_min ? value + header_value(kPanelRows + lane) : value;
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
  for (int row = begin; row < end; ++row)
    for (int i = 0; i < table.num_in; ++i) y[row * y_stride + i] = value_at(table, ids[row], i);
}

void silu_mul(const float* gate, const float* up, int64_t stride, int num, int begin, int end,
              float* y, int64_t y_stride) {
  for (int row = begin; row < end; ++row)
    for (int i = 0; i < num; i += kLanes)
      store(y + row * y_stride + i,
            mul(silu(load(gate + row * stride + i)), load(up + row * stride + i)));
}

}  // namespace baton::BATON_ISA
