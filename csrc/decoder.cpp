#include "decoder.h"

#include <algorithm>
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

// Fewer rows would have every thread fetch all weights for little; more make products so long that
// threads wait for each other little, and share out what is left better.
constexpr int kLeastRowsPerPart = 8, kMostRowsInParts = 192;

// After how many keys attention takes as long as a row's products: a decoding row fetches its keys
// from memory, rows of a prompt share them.
constexpr double kKeysOfDecodingRow = 400.0, kKeysOfPromptRow = 1800.0;

// Of a row, in units of its products.
double row_cost(const Span& span) {
  const double keys = span.num_tokens == 1 ? kKeysOfDecodingRow : kKeysOfPromptRow;
  return 1.0 + double(span.context_len) / keys;
}

}  // namespace

Decoder::Decoder(const KernelTable& kernels, ThreadPool& threads, const DecoderConfig& config,
                 const PackedWeight& embedding, const float* final_norm, Linear lm_head)
    : kernels_(kernels),
      threads_(threads),
      config_(config),
      embedding_(embedding),
      final_norm_(final_norm),
      lm_head_(std::move(lm_head)),
      lanes_(size_t(threads.num_threads())) {}

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

void Decoder::Lane::count(Stage stage) {
  const int64_t now = now_ns();
  stage_ns[stage] += now - last_ns;
  last_ns = now;
}

void Decoder::forward(const DecoderInput& input, KvLayer kv, int64_t layer_bytes, float* logits) {
  DenormalsOff denormals_off;
  for (Lane& lane : lanes_) lane.num_written.store(0, std::memory_order_relaxed);
  lanes_[0].last_ns = now_ns();
  const int num = num_parts(input);
  if (num == 1) return run(lanes_[0], threads_, {input, {}, {}, logits, nullptr}, kv, layer_bytes);
  const std::vector<Part> parts = cut(input, num, logits);
  threads_.run(num, [&](int index, int) {
    static thread_local ThreadPool alone(1, {}, 0);
    Lane& lane = lanes_[size_t(index)];
    lane.last_ns = now_ns();
    run(lane, alone, parts[size_t(index)], kv, layer_bytes);
  });
  lanes_[0].count(kLogits);
}

int Decoder::num_parts(const DecoderInput& input) const {
  const int num = threads_.num_working();
  if (input.num_tokens < num * kLeastRowsPerPart || input.num_tokens > kMostRowsInParts) return 1;
  return std::is_sorted(input.logit_rows, input.logit_rows + input.num_logit_rows) ? num : 1;
}

// As even as can be; a span may be cut, as the rows of its second half wait for the first's keys.
std::vector<Decoder::Part> Decoder::cut(const DecoderInput& input, int num_parts, float* logits) {
  double whole = 0.0, done = 0.0;
  for (int i = 0; i < input.num_spans; ++i)
    whole += input.spans[i].num_tokens * row_cost(input.spans[i]);
  std::vector<Part> parts;
  const int half = config_.head_dim / 2;
  int logit = 0, span = 0, taken = 0;  // rows of `span`
  for (int index = 0; index < num_parts; ++index) {
    Part part;
    const int begin = span < input.num_spans ? input.spans[span].start + taken : input.num_tokens;
    part.before = taken > 0 ? &lanes_[size_t(index - 1)] : nullptr;
    int num_rows = 0;
    // The last one takes what is left, however sums were rounded.
    const double end_cost = index + 1 == num_parts ? 2.0 * whole : whole * (index + 1) / num_parts;
    while (span < input.num_spans && done < end_cost) {
      const Span& from = input.spans[span];
      const double cost = row_cost(from);
      const int left = from.num_tokens - taken;
      const int wanted = int(std::min(double(left), std::ceil((end_cost - done) / cost)));
      part.spans.push_back({num_rows, wanted, from.context_len - left + wanted, from.blocks});
      done += wanted * cost;
      num_rows += wanted;
      taken += wanted;
      if (taken == from.num_tokens) ++span, taken = 0;
    }
    part.logits = logits + int64_t(logit) * lm_head_.num_out;
    for (; logit < input.num_logit_rows && input.logit_rows[logit] < begin + num_rows; ++logit)
      part.logit_rows.push_back(input.logit_rows[logit] - begin);
    part.input = {num_rows,
                  input.token_ids + begin,
                  input.slots + begin,
                  input.cos + int64_t(begin) * half,
                  input.sin + int64_t(begin) * half,
                  part.spans.data(),
                  int(part.spans.size()),
                  part.logit_rows.data(),
                  int(part.logit_rows.size())};
    parts.push_back(std::move(part));
  }
  return parts;
}

void Decoder::run(Lane& lane, ThreadPool& threads, const Part& part, KvLayer kv,
                  int64_t layer_bytes) {
  const DecoderInput& input = part.input;
  const int64_t num_tokens = input.num_tokens, hidden = config_.hidden_size;
  const int64_t head_dim = config_.head_dim;
  reserve(lane.x, num_tokens * hidden);
  reserve(lane.qkv, num_tokens * (config_.num_heads + 2 * config_.num_kv_heads) * head_dim);
  reserve(lane.attended, num_tokens * config_.num_heads * head_dim);
  reserve(lane.gated, num_tokens * config_.intermediate_size);
  for_rows(threads, input.num_tokens, kRowsPerPiece, [&](int begin, int end) {
    kernels_.embed(embedding_, input.token_ids, begin, end, lane.x.data(), hidden);
  });
  lane.count(kEmbed);
  for (size_t index = 0; index < layers_.size(); ++index) {
    const DecoderLayer& layer = layers_[index];
    attend(lane, threads, layer, part, kv, int(index));
    kv.layer_offset += layer_bytes;
    // What the last layer computes beyond its keys and values is for the logits alone.
    const bool is_last = index + 1 == layers_.size();
    if (is_last) select_rows(lane, input);
    finish_layer(lane, threads, layer, is_last ? input.num_logit_rows : input.num_tokens);
  }
  if (input.num_logit_rows == 0) return;
  prepare(kernels_, threads, lm_head_, lane.x.data(), hidden, input.num_logit_rows, final_norm_,
          config_.rms_norm_eps, lane.activations);
  multiply(kernels_, threads, lm_head_, lane.activations, input.num_logit_rows, part.logits,
           lm_head_.num_out, Epilogue::kStore);
  lane.count(kLogits);
}

void Decoder::attend(Lane& lane, ThreadPool& threads, const DecoderLayer& layer, const Part& part,
                     const KvLayer& kv, int index) {
  const DecoderInput& input = part.input;
  const int num_tokens = input.num_tokens, head_dim = config_.head_dim;
  const int64_t width = int64_t(config_.num_heads + 2 * config_.num_kv_heads) * head_dim;
  prepare(kernels_, threads, layer.qkv, lane.x.data(), config_.hidden_size, num_tokens,
          layer.attention_norm, config_.rms_norm_eps, lane.activations);
  multiply(kernels_, threads, layer.qkv, lane.activations, num_tokens, lane.qkv.data(), width,
           Epilogue::kStore);
  lane.count(kQkv);
  const RotaryArgs rotary{lane.qkv.data(), width,        config_.num_heads,
                          layer.q_norm,    layer.k_norm, config_.rms_norm_eps,
                          input.cos,       input.sin,    input.slots};
  for_rows(threads, num_tokens, kRowsPerPiece,
           [&](int begin, int end) { kernels_.rotary_write(rotary, kv, begin, end); });
  lane.count(kRotary);
  // In this order, so that who waits for this lane has waited for all before it. Nobody waits for a
  // later part: its keys, which are being written meanwhile, are none that rows here may see.
  if (part.before != nullptr) wait_until_reaches(part.before->num_written, index + 1);
  lane.num_written.store(index + 1, std::memory_order_release);
  const AttentionArgs attention{lane.qkv.data(),      width,
                                lane.attended.data(), int64_t(config_.num_heads) * head_dim,
                                config_.num_heads,    1.0f / std::sqrt(float(head_dim)),
                                config_.window,       input.spans,
                                input.num_spans};
  kernels_.attention(attention, kv, threads);
  lane.count(kAttention);
}

void Decoder::select_rows(Lane& lane, const DecoderInput& input) {
  const int64_t hidden = config_.hidden_size;
  const int64_t width = int64_t(config_.num_heads) * config_.head_dim;
  const auto select = [&](std::vector<float>& rows, int64_t row_size) {
    reserve(lane.selected, input.num_logit_rows * row_size);
    for (int64_t i = 0; i < input.num_logit_rows; ++i)
      std::memcpy(lane.selected.data() + i * row_size, rows.data() + input.logit_rows[i] * row_size,
                  sizeof(float) * size_t(row_size));
    std::memcpy(rows.data(), lane.selected.data(),
                sizeof(float) * size_t(input.num_logit_rows * row_size));
  };
  // Rows may be asked for more than once, so more may be wanted than there are.
  reserve(lane.x, input.num_logit_rows * hidden);
  reserve(lane.attended, input.num_logit_rows * width);
  reserve(lane.gated, int64_t(input.num_logit_rows) * config_.intermediate_size);
  select(lane.x, hidden);
  select(lane.attended, width);
}

void Decoder::finish_layer(Lane& lane, ThreadPool& threads, const DecoderLayer& layer,
                           int num_rows) {
  if (num_rows == 0) return;
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  const float eps = config_.rms_norm_eps;
  prepare(kernels_, threads, layer.o, lane.attended.data(),
          int64_t(config_.num_heads) * config_.head_dim, num_rows, nullptr, eps, lane.activations);
  multiply(kernels_, threads, layer.o, lane.activations, num_rows, lane.x.data(), hidden,
           Epilogue::kAdd);
  lane.count(kOutput);
  prepare(kernels_, threads, layer.gate_up, lane.x.data(), hidden, num_rows, layer.mlp_norm, eps,
          lane.activations);
  if (layer.gate_up.parts.size() == 1) {
    multiply(kernels_, threads, layer.gate_up, lane.activations, num_rows, lane.gated.data(), inner,
             Epilogue::kSiluMul);
  } else {
    reserve(lane.halves, num_rows * 2 * inner);
    multiply(kernels_, threads, layer.gate_up, lane.activations, num_rows, lane.halves.data(),
             2 * inner, Epilogue::kStore);
    for_rows(threads, num_rows, kRowsPerPiece, [&](int begin, int end) {
      kernels_.silu_mul(lane.halves.data(), lane.halves.data() + inner, 2 * inner, int(inner),
                        begin, end, lane.gated.data(), inner);
    });
  }
  lane.count(kGateUp);
  prepare(kernels_, threads, layer.down, lane.gated.data(), inner, num_rows, nullptr, eps,
          lane.activations);
  multiply(kernels_, threads, layer.down, lane.activations, num_rows, lane.x.data(), hidden,
           Epilogue::kAdd);
  lane.count(kDown);
}

}  // namespace baton
