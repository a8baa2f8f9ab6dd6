// The class baton.kernels._native.Decoder.
#include <memory>

#include "bindings.h"
#include "decoder.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace baton {
namespace {

// A Decoder and what keeps its arrays alive.
class HeldDecoder {
 public:
  HeldDecoder(nb::object engine, int num_heads, int num_kv_heads, int head_dim, int hidden_size,
              int intermediate_size, float eps, int window, nb::object embedding, Floats norm,
              nb::object lm_head)
      : config_{num_heads, num_kv_heads, head_dim, hidden_size, intermediate_size, eps, window},
        vocab_size_(nb::cast<const HeldLinear&>(lm_head).linear.num_out) {
    for (const nb::object& each : {engine, embedding, lm_head}) held_.push_back(each);
    const PackedWeight& table = nb::cast<const Weight&>(embedding).packed;
    require(table.num_in == hidden_size, "the embedding is not hidden_size wide");
    num_embeddings_ = table.num_out;
    const Linear& head = nb::cast<const HeldLinear&>(lm_head).linear;
    require(head.num_in == hidden_size, "lm_head does not take hidden_size inputs");
    require(head_dim % 16 == 0 && hidden_size % 16 == 0 && intermediate_size % 16 == 0,
            "head_dim, hidden_size and intermediate_size must be multiples of 16");
    const Engine& own = nb::cast<const Engine&>(engine);
    decoder_ = std::make_unique<Decoder>(*own.kernels, *own.threads, config_, table,
                                         hold(norm, hidden_size), head);
  }

  void add_layer(Floats attention_norm, nb::object qkv, std::optional<Floats> q_norm,
                 std::optional<Floats> k_norm, nb::object o, Floats mlp_norm, nb::object gate_up,
                 nb::object down) {
    const int head_dim = config_.head_dim, hidden = config_.hidden_size;
    const int width = config_.num_heads * head_dim, inner = config_.intermediate_size;
    DecoderLayer layer{hold(attention_norm, hidden),
                       hold(qkv, hidden, width + 2 * config_.num_kv_heads * head_dim),
                       q_norm ? hold(*q_norm, head_dim) : nullptr,
                       k_norm ? hold(*k_norm, head_dim) : nullptr,
                       hold(o, width, hidden),
                       hold(mlp_norm, hidden),
                       hold(gate_up, hidden, 2 * inner),
                       hold(down, inner, hidden)};
    require(layer.gate_up.parts.size() <= 2, "gate_up has more than two parts");
    decoder_->add_layer(std::move(layer));
    ++num_layers_;
  }

  void forward(const Pool& pool, Ids token_ids, Ids slots, Array<const float, 2> cos,
               Array<const float, 2> sin, const std::vector<std::array<int32_t, 3>>& rows,
               const nb::list& block_ids, Ids logit_rows, FloatRows logits) {
    const int num_tokens = int(token_ids.size()), half = config_.head_dim / 2;
    require(int(slots.size()) == num_tokens && int(cos.shape(0)) == num_tokens &&
                int(sin.shape(0)) == num_tokens && int(cos.shape(1)) == half &&
                int(sin.shape(1)) == half,
            "token_ids, slots, cos and sin differ in length");
    require(pool.layer.head_dim == config_.head_dim &&
                pool.layer.num_kv_heads == config_.num_kv_heads &&
                pool.layer.block_bytes == num_layers_ * pool.layer_bytes,
            "the pool belongs to another model");
    require(logits.shape(0) == logit_rows.size() && int(logits.shape(1)) == vocab_size_,
            "logits is not len(logit_rows) x vocabulary");
    for (int i = 0; i < num_tokens; ++i) {
      require(token_ids.data()[i] >= 0 && token_ids.data()[i] < num_embeddings_,
              "token id " + std::to_string(token_ids.data()[i]) + " is outside the vocabulary");
      require(slots.data()[i] >= 0 && slots.data()[i] < pool.num_blocks * pool.layer.block_size,
              "a slot is outside the pool");
    }
    for (size_t i = 0; i < logit_rows.size(); ++i)
      require(logit_rows.data()[i] >= 0 && logit_rows.data()[i] < num_tokens,
              "a logit row is outside the batch");
    const Spans spans = read_spans(rows, block_ids, pool, num_tokens);
    int num_spanned = 0;
    for (const Span& span : spans.spans) {
      require(span.start == num_spanned, "spans do not lie one behind the other");
      num_spanned += span.num_tokens;
    }
    require(num_spanned == num_tokens, "spans do not cover all rows");
    const DecoderInput input{num_tokens,
                             token_ids.data(),
                             slots.data(),
                             cos.data(),
                             sin.data(),
                             spans.spans.data(),
                             int(spans.spans.size()),
                             logit_rows.data(),
                             int(logit_rows.size())};
    nb::gil_scoped_release unlocked;
    decoder_->forward(input, pool.layer, pool.layer_bytes, logits.data());
  }

  nb::dict stage_seconds() const {
    static constexpr const char* kNames[kNumStages] = {"embed",  "qkv",     "rotary", "attention",
                                                       "output", "gate_up", "down",   "logits"};
    nb::dict result;
    for (int i = 0; i < kNumStages; ++i) result[kNames[i]] = double(decoder_->stage_ns()[i]) * 1e-9;
    return result;
  }

 private:
  const float* hold(const Floats& values, int size) {
    require(int(values.size()) == size,
            "a norm has " + std::to_string(values.size()) + " values, not " + std::to_string(size));
    arrays_.push_back(values);
    return values.data();
  }

  Linear hold(const nb::object& object, int num_in, int num_out) {
    const Linear& linear = nb::cast<const HeldLinear&>(object).linear;
    require(linear.num_in == num_in && linear.num_out == num_out,
            "a linear is " + std::to_string(linear.num_out) + " x " +
                std::to_string(linear.num_in) + ", not " + std::to_string(num_out) + " x " +
                std::to_string(num_in));
    held_.push_back(object);
    return linear;
  }

  const DecoderConfig config_;
  const int vocab_size_;
  int num_embeddings_ = 0;
  int num_layers_ = 0;
  std::vector<nb::object> held_;
  std::vector<Floats> arrays_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace
}  // namespace baton

void bind_decoder(nb::module_& module) {
  using namespace baton;
  nb::class_<HeldDecoder>(module, "Decoder")
      .def(nb::init<nb::object, int, int, int, int, int, float, int, nb::object, Floats,
                    nb::object>(),
           "kernels"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "hidden_size"_a,
           "intermediate_size"_a, "eps"_a, "window"_a, "embedding"_a, "norm"_a, "lm_head"_a)
      .def("add_layer", &HeldDecoder::add_layer, "attention_norm"_a, "qkv"_a, "q_norm"_a.none(),
           "k_norm"_a.none(), "o"_a, "mlp_norm"_a, "gate_up"_a, "down"_a)
      .def("forward", &HeldDecoder::forward, "pool"_a, "token_ids"_a, "slots"_a, "cos"_a, "sin"_a,
           "spans"_a, "block_ids"_a, "logit_rows"_a, "logits"_a)
      .def("stage_seconds", &HeldDecoder::stage_seconds);
}
