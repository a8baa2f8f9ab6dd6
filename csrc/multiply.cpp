#include "multiply.h"

#include <algorithm>
#include <utility>

namespace baton {
namespace {

constexpr int64_t kAlignment = 64;
// Rows side by side: enough that unpacking a weight for them costs little, few enough for their
// sums to fit the registers (linear.cpp).
constexpr int kMostRowsPerStrip = 12;

// 96 rows of a few thousand int8 inputs stay in a second-level cache while all panels pass by.
constexpr int kMostStripsPerPiece = 8, kLeastStripsPerPiece = 5;

// Long enough that handing out pieces costs nothing, short enough that a thread without a core, or
// a neighbour with higher priority, waits for little.
constexpr double kPieceNs = 15000.0;
constexpr double kOpsPerNs = 350.0, kBytesPerNs = 16.0;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int pairs_per_piece(const PackedWeight& weight, int num_rows, int num_pairs, int num_threads) {
  const double ops = 2.0 * num_rows * 2 * kPanelRows * weight.num_in;
  const double ns = std::max(ops / kOpsPerNs, 2.0 * double(weight.panel_bytes) / kBytesPerNs);
  const int wanted = std::max(1, int(kPieceNs / ns));
  const int fair = std::max(1, num_pairs / (2 * num_threads));
  return std::min(wanted, fair);
}

// As even as can be. A few rows are cut into two strips, so that two threads can round them.
int rows_per_strip(int num_rows) {
  const int num_strips = std::max((num_rows - 1) / kMostRowsPerStrip + 1, num_rows > 4 ? 2 : 1);
  const int fair = (num_rows - 1) / num_strips + 1;
  return num_strips == 1 ? fair : (fair + 1) / 2 * 2;
}

// Whole strips, and such that a thread's share of the pieces has the rows that its share of any
// other work on rows has (thread_pool.h).
int strips_per_piece(int num_strips, int num_threads) {
  int best = kMostStripsPerPiece;
  const int share = (num_strips - 1) / num_threads + 1;
  const auto rest = [&](int size) { return (size - share % size) % size; };
  for (int size = best; size >= kLeastStripsPerPiece; --size)
    if (rest(size) < rest(best)) best = size;
  return num_strips <= kMostStripsPerPiece ? num_strips : best;
}

// Output rows that a strip has.
int rows_of_strip(const Activations& x) { return x.has_remainder ? x.strip / 2 : x.strip; }

}  // namespace

ActivationForm activation_form(const PackedWeight& weight) {
  switch (weight.form) {
    case WeightForm::kBf16:
      return ActivationForm::kBf16;
    case WeightForm::kF32:
      return ActivationForm::kF32;
    default:
      // For 32 inputs a group is a row.
      return weight.group == weight.num_in && weight.group != kGroup ? ActivationForm::kInt8Row
                                                                     : ActivationForm::kInt8Group;
  }
}

const Activations& ActivationBuffer::reserve(ActivationForm form, int num_rows, int num_in,
                                             bool has_remainder) {
  has_remainder &= form == ActivationForm::kInt8Group || form == ActivationForm::kInt8Row;
  if (has_remainder) num_rows *= 2;
  const int strip = rows_per_strip(num_rows);
  num_rows = (num_rows + strip - 1) / strip * strip;
  const int64_t elements = int64_t(num_rows) * num_in;
  const bool is_grouped = form == ActivationForm::kInt8Group;
  const int64_t num_scales = is_grouped ? elements / kGroup : num_rows;
  const int64_t num_sums = is_grouped ? elements / kSumGroup : num_rows;
  const bool is_int8 = is_grouped || form == ActivationForm::kInt8Row;
  const int64_t value_bytes = is_int8 ? 1 : form == ActivationForm::kBf16 ? 2 : 4;
  std::vector<uint8_t>& memory = memory_[int(form)];
  const size_t needed = size_t(kAlignment + aligned(elements * value_bytes) +
                               2 * aligned(num_scales * 4) + aligned(num_sums * 4));
  if (memory.size() < needed) memory.resize(needed);
  uint8_t* at = memory.data();
  at += (kAlignment - int64_t(reinterpret_cast<uintptr_t>(at) % kAlignment)) % kAlignment;
  Activations& x = activations_[int(form)];
  x = {};
  x.form = form;
  x.has_remainder = has_remainder;
  x.num_in = num_in;
  x.strip = strip;
  if (form == ActivationForm::kBf16) {
    x.bf16 = reinterpret_cast<uint16_t*>(at);
  } else if (form == ActivationForm::kF32) {
    x.f32 = reinterpret_cast<float*>(at);
  } else {
    x.values = reinterpret_cast<int8_t*>(at);
    at += aligned(elements);
    x.scales = reinterpret_cast<float*>(at);
    at += aligned(num_scales * 4);
    x.scaled_sums = reinterpret_cast<float*>(at);
    at += aligned(num_scales * 4);
    x.sums = reinterpret_cast<int32_t*>(at);
  }
  return x;
}

void prepare(const KernelTable& kernels, ThreadPool& threads, const Linear& linear, const float* x,
             int64_t x_stride, int num_rows, const float* norm_weight, float eps,
             ActivationBuffer& buffer) {
  if (num_rows == 0) return;
  bool is_done[4] = {};
  for (const LinearPart& part : linear.parts) {
    const ActivationForm form = activation_form(part.weight);
    if (std::exchange(is_done[int(form)], true)) continue;
    const Activations& out = buffer.reserve(form, num_rows, linear.num_in, linear.keeps_remainder);
    // Rows of a strip share cache lines.
    for_rows(threads, num_rows, rows_of_strip(out), [&](int begin, int end) {
      if (norm_weight != nullptr)
        kernels.rms_norm_quantize(x, x_stride, norm_weight, eps, begin, end, out);
      else
        kernels.quantize(x, x_stride, begin, end, out);
    });
  }
}

void multiply(const KernelTable& kernels, ThreadPool& threads, const Linear& linear,
              const ActivationBuffer& buffer, int num_rows, float* y, int64_t y_stride,
              Epilogue epilogue) {
  if (num_rows == 0) return;
  for (const LinearPart& part : linear.parts) {
    const PackedWeight& weight = part.weight;
    const Activations& x = buffer.get(activation_form(weight));
    const LinearArgs args{&weight, &x, part.bias, y + part.column, y_stride, epilogue};
    const int num_panels = (weight.num_out + kPanelRows - 1) / kPanelRows;
    const int num_pairs = (num_panels + 1) / 2;
    const int strip = rows_of_strip(x), num_strips = (num_rows + strip - 1) / strip;
    const int rows = strip * strips_per_piece(num_strips, threads.num_threads());
    const int num_row_blocks = (num_rows + rows - 1) / rows;
    const int width =
        pairs_per_piece(weight, std::min(rows, num_rows), num_pairs, threads.num_threads());
    const int num_ranges = (num_pairs + width - 1) / width;
    const auto piece = [&](int index, int) {
      const int row = index / num_ranges * rows;
      const int panel = index % num_ranges * width * 2;
      kernels.linear(args, row, std::min(row + rows, num_rows), panel,
                     std::min(panel + 2 * width, num_panels));
    };
    threads.run(num_row_blocks * num_ranges, piece);
  }
}

}  // namespace baton
