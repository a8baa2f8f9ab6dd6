#include "decoder.h"

#include <chrono>
#include <cmath>
#include <cstring>

namespace baton {
namespace {

constexpr int kRowsPerPiece = 4;

int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void reserve(std::vector<float>& buffer, int64_t size) {
  if (int64_t(buffer.size()) < size) buffer.resize(size_t(size));
}

}  // namespace

Decoder::Decoder(const KernelTable& kernels, ThreadPool& threads, const DecoderConfig& config,
                 const PackedWeight& embedding, const float* final_norm, Linear lm_head)
    : kernels_(kernels),
      threads_(threads),
      config_(config),
      embedding_(embedding),
      final_norm_(final_norm),
      lm_head_(std::move(lm_head)) {}

// Of all roundings, those in the last layer's MLP move the logits most, for the least work: in
// prefill hardly any row gets there.
void Decoder::add_layer(DecoderLayer layer) {
  const auto keep_remainders = [this](bool keeps) {
    layers_.back().gate_up.keeps_remainder = layers_.back().down.keeps_remainder = keeps;
  };
  if (!layers_.empty()) keep_remainders(false);
  layers_.push_back(std::move(layer));
  keep_remainders(true);
}

void Decoder::forward(const DecoderInput& input, KvLayer kv, int64_t layer_bytes, float* logits) {
  DenormalsOff denormals_off;
  last_ns_ = now_ns();
  const int64_t num_tokens = input.num_tokens, hidden = config_.hidden_size;
  const int64_t head_dim = config_.head_dim;
  reserve(x_, num_tokens * hidden);
  reserve(qkv_, num_tokens * (config_.num_heads + 2 * config_.num_kv_heads) * head_dim);
  reserve(attended_, num_tokens * config_.num_heads * head_dim);
  reserve(gated_, num_tokens * config_.intermediate_size);
  for_rows(threads_, input.num_tokens, kRowsPerPiece, [&](int begin, int end) {
    kernels_.embed(embedding_, input.token_ids, begin, end, x_.data(), hidden);
  });
  count(kEmbed);
  for (size_t index = 0; index < layers_.size(); ++index) {
    const DecoderLayer& layer = layers_[index];
    attend(layer, input, kv);
    kv.layer_offset += layer_bytes;
    // What the last layer computes beyond its keys and values is for the logits alone.
    const bool is_last = index + 1 == layers_.size();
    if (is_last) select_rows(input);
    finish_layer(layer, is_last ? input.num_logit_rows : input.num_tokens);
  }
  if (input.num_logit_rows == 0) return;
  prepare(kernels_, threads_, lm_head_, x_.data(), hidden, input.num_logit_rows, final_norm_,
          config_.rms_norm_eps, activations_);
  multiply(kernels_, threads_, lm_head_, activations_, input.num_logit_rows, logits,
           lm_head_.num_out, Epilogue::kStore);
  count(kLogits);
}

void Decoder::attend(const DecoderLayer& layer, const DecoderInput& input, const KvLayer& kv) {
  const int num_tokens = input.num_tokens, head_dim = config_.head_dim;
  const int64_t width = int64_t(config_.num_heads + 2 * config_.num_kv_heads) * head_dim;
  prepare(kernels_, threads_, layer.qkv, x_.data(), config_.hidden_size, num_tokens,
          layer.attention_norm, config_.rms_norm_eps, activations_);
  multiply(kernels_, threads_, layer.qkv, activations_, num_tokens, qkv_.data(), width,
           Epilogue::kStore);
  count(kQkv);
  const RotaryArgs rotary{qkv_.data(),  width,        config_.num_heads,
                          layer.q_norm, layer.k_norm, config_.rms_norm_eps,
                          input.cos,    input.sin,    input.slots};
  for_rows(threads_, num_tokens, kRowsPerPiece,
           [&](int begin, int end) { kernels_.rotary_write(rotary, kv, begin, end); });
  count(kRotary);
  const AttentionArgs attention{qkv_.data(),       width,
                                attended_.data(),  int64_t(config_.num_heads) * head_dim,
                                config_.num_heads, 1.0f / std::sqrt(float(head_dim)),
                                config_.window,    input.spans,
                                input.num_spans};
  kernels_.attention(attention, kv, threads_);
  count(kAttention);
}

void Decoder::select_rows(const DecoderInput& input) {
  const int64_t hidden = config_.hidden_size;
  const int64_t width = int64_t(config_.num_heads) * config_.head_dim;
  const auto select = [&](std::vector<float>& rows, int64_t row_size) {
    reserve(selected_, input.num_logit_rows * row_size);
    for (int64_t i = 0; i < input.num_logit_rows; ++i)
      std::memcpy(selected_.data() + i * row_size, rows.data() + input.logit_rows[i] * row_size,
                  sizeof(float) * size_t(row_size));
    std::memcpy(rows.data(), selected_.data(),
                sizeof(float) * size_t(input.num_logit_rows * row_size));
  };
  // Rows may be asked for more than once, so more may be wanted than there are.
  reserve(x_, input.num_logit_rows * hidden);
  reserve(attended_, input.num_logit_rows * width);
  reserve(gated_, int64_t(input.num_logit_rows) * config_.intermediate_size);
  select(x_, hidden);
  select(attended_, width);
}

void Decoder::finish_layer(const DecoderLayer& layer, int num_rows) {
  if (num_rows == 0) return;
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  const float eps = config_.rms_norm_eps;
  prepare(kernels_, threads_, layer.o, attended_.data(),
          int64_t(config_.num_heads) * config_.head_dim, num_rows, nullptr, eps, activations_);
  multiply(kernels_, threads_, layer.o, activations_, num_rows, x_.data(), hidden, Epilogue::kAdd);
  count(kOutput);
  prepare(kernels_, threads_, layer.gate_up, x_.data(), hidden, num_rows, layer.mlp_norm, eps,
          activations_);
  if (layer.gate_up.parts.size() == 1) {
    multiply(kernels_, threads_, layer.gate_up, activations_, num_rows, gated_.data(), inner,
             Epilogue::kSiluMul);
  } else {
    reserve(halves_, num_rows * 2 * inner);
    multiply(kernels_, threads_, layer.gate_up, activations_, num_rows, halves_.data(), 2 * inner,
             Epilogue::kStore);
    for_rows(threads_, num_rows, kRowsPerPiece, [&](int begin, int end) {
      kernels_.silu_mul(halves_.data(), halves_.data() + inner, 2 * inner, int(inner), begin, end,
                        gated_.data(), inner);
    });
  }
  count(kGateUp);
  prepare(kernels_, threads_, layer.down, gated_.data(), inner, num_rows, nullptr, eps,
          activations_);
  multiply(kernels_, threads_, layer.down, activations_, num_rows, x_.data(), hidden,
           Epilogue::kAdd);
  count(kDown);
}

void Decoder::count(Stage stage) {
  const int64_t now = now_ns();
  stage_ns_[stage] += now - last_ns_;
  last_ns_ = now;
}

}  // namespace baton
