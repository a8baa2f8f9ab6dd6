// The decoder of the Llama family: the loop over its layers, written over the kernels.
//
// It mirrors models/llama.py line by line; it exists because a step of a small model is over before
// Python would have made its few hundred calls.
// Threads that meet after each product all wait when one of them loses its core for a moment. So
// with some rows for each, threads take their rows through all layers and meet once; with fewer or
// many more rows they share each product.
// Elsewhere: what each kernel computes (kernels.h), weights (models/native_decoder.py).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "kernels.h"
#include "multiply.h"
#include "thread_pool.h"

namespace baton {

struct DecoderConfig {
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t hidden_size;
  int32_t intermediate_size;
  float rms_norm_eps;
  int32_t window;  // 0: none
};

struct DecoderLayer {
  const float* attention_norm;  // hidden_size
  Linear qkv;                   // queries, keys, values side by side
  const float* q_norm;          // head_dim, or null
  const float* k_norm;
  Linear o;
  const float* mlp_norm;
  Linear gate_up;  // one part with gate and up panels in turn, or two parts
  Linear down;
};

struct DecoderInput {
  int num_tokens;
  const int64_t* token_ids;
  const int64_t* slots;
  const float* cos;  // num_tokens x head_dim / 2
  const float* sin;
  const Span* spans;
  int num_spans;
  const int64_t* logit_rows;
  int num_logit_rows;
};

enum Stage { kEmbed, kQkv, kRotary, kAttention, kOutput, kGateUp, kDown, kLogits, kNumStages };

class Decoder {
 public:
  Decoder(const KernelTable& kernels, ThreadPool& threads, const DecoderConfig& config,
          const PackedWeight& embedding, const float* final_norm, Linear lm_head);

  void add_layer(DecoderLayer layer);

  // Logits of the wanted rows, num_logit_rows x vocabulary. `kv` is layer 0 of the pool; layers
  // are `layer_bytes` apart in a block.
  void forward(const DecoderInput& input, KvLayer kv, int64_t layer_bytes, float* logits);

  // Nanoseconds spent in each stage since the start, by the thread that calls `forward`.
  const std::array<int64_t, kNumStages>& stage_ns() const { return lanes_[0].stage_ns; }

 private:
  // What rows need on their way through the layers.
  struct Lane {
    std::vector<float> x, qkv, attended, gated, halves, selected;
    ActivationBuffer activations;
    std::atomic<int> num_written{0};  // layers to which its keys and values have been written
    std::array<int64_t, kNumStages> stage_ns{};
    int64_t last_ns = 0;

    void count(Stage stage);
  };
  // Some neighbouring rows of a batch. If it begins within a span, `before` is the lane of the part
  // that has the span's earlier rows.
  struct Part {
    DecoderInput input;
    std::vector<Span> spans;
    std::vector<int64_t> logit_rows;
    float* logits;
    const Lane* before;
  };

  int num_parts(const DecoderInput& input) const;
  std::vector<Part> cut(const DecoderInput& input, int num_parts, float* logits);
  void run(Lane& lane, ThreadPool& threads, const Part& part, KvLayer kv, int64_t layer_bytes);
  void attend(Lane& lane, ThreadPool& threads, const DecoderLayer& layer, const Part& part,
              const KvLayer& kv, int index);
  void finish_layer(Lane& lane, ThreadPool& threads, const DecoderLayer& layer, int num_rows);
  void select_rows(Lane& lane, const DecoderInput& input);

  const KernelTable& kernels_;
  ThreadPool& threads_;
  const DecoderConfig config_;
  const PackedWeight embedding_;
  const float* const final_norm_;
  Linear lm_head_;
  std::vector<DecoderLayer> layers_;

  std::deque<Lane> lanes_;  // one for each part
};

}  // namespace baton
