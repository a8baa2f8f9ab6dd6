// Spreading work on rows and weights over threads.
//
// Elsewhere: the threads (thread_pool.cpp), the kernels themselves (linear.cpp, rows.cpp).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "thread_pool.h"

namespace baton {

ActivationForm activation_form(const PackedWeight& weight);

// One or more weights over the same inputs, their outputs side by side; `bias` may be null.
struct LinearPart {
  PackedWeight weight;
  const float* bias;
  int32_t column;  // of the first output
};

// `keeps_remainder`: activations that are rounded to int8 are rounded twice (see Activations).
struct Linear {
  bool keeps_remainder = false;
  std::vector<LinearPart> parts;
  int32_t num_in = 0;
  int32_t num_out = 0;
};

// Room for rows in each of the forms that weights want; grows, never shrinks.
class ActivationBuffer {
 public:
  // Room for `num_rows` rows of `num_in`; what it held before is lost.
  const Activations& reserve(ActivationForm form, int num_rows, int num_in, bool has_remainder);
  const Activations& get(ActivationForm form) const { return activations_[int(form)]; }

 private:
  static constexpr int kNumForms = 4;
  Activations activations_[kNumForms] = {};
  std::vector<uint8_t> memory_[kNumForms];
};

// Rounds rows of x for all parts of `linear`; with `norm_weight`, of x normalized.
void prepare(const KernelTable& kernels, ThreadPool& threads, const Linear& linear, const float* x,
             int64_t x_stride, int num_rows, const float* norm_weight, float eps,
             ActivationBuffer& buffer);

// y (num_rows rows) = what `prepare` left in the buffer times `linear`, through the epilogue.
void multiply(const KernelTable& kernels, ThreadPool& threads, const Linear& linear,
              const ActivationBuffer& buffer, int num_rows, float* y, int64_t y_stride,
              Epilogue epilogue);

// Calls f(begin, end) for ranges of rows, together covering [0, num_rows).
template <class F>
void for_rows(ThreadPool& threads, int num_rows, int rows_per_piece, F&& f) {
  const auto piece = [&](int index, int) {
    const int begin = index * rows_per_piece;
    f(begin, begin + rows_per_piece < num_rows ? begin + rows_per_piece : num_rows);
  };
  threads.run((num_rows + rows_per_piece - 1) / rows_per_piece, piece);
}

}  // namespace baton
