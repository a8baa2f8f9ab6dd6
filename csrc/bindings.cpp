// The module baton.kernels._native: the kernels for Python, sizes checked.
//
// Arrays come in as they lie in memory, without copies; the interpreter lock is released while
// kernels run. Elsewhere: what callers may pass (kernels/_native.pyi).
#include "bindings.h"

#include <memory>
#include <utility>

#include "thread_pool.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_byte_mover(nanobind::module_& module);
void bind_decoder(nanobind::module_& module);
void bind_sampler(nanobind::module_& module);

namespace baton {
namespace {

Weight make_weight(int form, int num_out, int num_in, int group, int zero_point,
                   bool has_half_scales, bool has_min, int64_t panel_bytes,
                   Array<const uint8_t, 1> data) {
  const std::string shape = std::to_string(num_out) + " x " + std::to_string(num_in);
  require(form >= 0 && form <= 3, "form is " + std::to_string(form) + ", not 0 to 3");
  require(num_out > 0 && num_in > 0, "a weight of " + shape);
  const bool is_integer = form <= 1;
  if (is_integer)
    require(num_in % kGroup == 0, "inputs of an integer weight come in groups of 32: " + shape);
  else
    require(num_in % kPanelRows == 0, "inputs must be a multiple of 16: " + shape);
  const bool can_be_row = form == 1 && !has_half_scales && !has_min;
  if (is_integer)
    require(
        group == 32 || (group == num_in && can_be_row) || (group == 16 && form == 1 && !has_min),
        "group is " + std::to_string(group) +
            ", not 32, 16 (8 bit without mins) or the whole row (8 bit, float scales, no mins)");
  require(!has_min || zero_point == 0, "a weight with mins has zero_point 0");
  int64_t expected = int64_t(num_in) * kPanelRows * (form == 2 ? 2 : 4);
  if (is_integer) {
    const int64_t header = kPanelRows * (has_half_scales ? 2 : 4) * (has_min ? 2 : 1);
    expected =
        int64_t(num_in / group) * (header + int64_t(kPanelRows) * group / (form == 0 ? 2 : 1));
  }
  require(panel_bytes == expected,
          "panel_bytes is " + std::to_string(panel_bytes) + ", not " + std::to_string(expected));
  const int64_t num_panels = (num_out + kPanelRows - 1) / kPanelRows;
  require(int64_t(data.size()) >= num_panels * panel_bytes, "the data of " + shape + " is short");
  return {{WeightForm(form), num_out, num_in, group, zero_point, has_half_scales, has_min,
           panel_bytes, data.data()},
          data};
}

Engine make_engine(int num_threads, std::optional<std::string> isa, std::vector<int> cores,
                   double spin_us) {
  require(num_threads >= 1, "num_threads is " + std::to_string(num_threads) + ", below 1");
  const KernelTable* kernels = find_kernels(isa ? isa->c_str() : nullptr);
  require(kernels != nullptr, "no kernels named " + isa.value_or("") + " run on this CPU");
  return {kernels,
          std::make_unique<ThreadPool>(num_threads, std::move(cores), int64_t(spin_us * 1000.0)),
          std::make_unique<ActivationBuffer>()};
}

void limit_threads(Engine& engine, int num_working) {
  const int most = engine.threads->num_threads();
  require(num_working >= 1 && num_working <= most, "num_working is " + std::to_string(num_working) +
                                                       ", not from 1 to " + std::to_string(most));
  engine.threads->limit(num_working);
}

using Part = std::pair<nb::object, std::optional<Floats>>;

HeldLinear make_linear(std::vector<Part> parts) {
  require(!parts.empty(), "a linear has no weights");
  HeldLinear held;
  for (auto& [object, bias] : parts) {
    const PackedWeight& packed = nb::cast<const Weight&>(object).packed;
    require(held.linear.parts.empty() || packed.num_in == held.linear.num_in,
            "weights of one linear have different numbers of inputs");
    require(!bias || int(bias->size()) == packed.num_out, "the bias is not as long as the outputs");
    held.linear.parts.push_back({packed, bias ? bias->data() : nullptr, held.linear.num_out});
    held.linear.num_in = packed.num_in;
    held.linear.num_out += packed.num_out;
    held.weights.push_back(object);
    held.biases.push_back(bias);
  }
  return held;
}

void run_linear(const Engine& engine, const HeldLinear& held,
                nb::ndarray<const float, nb::ndim<2>, nb::c_contig> x, FloatRows y, int epilogue,
                std::optional<Floats> norm_weight, float eps, bool keeps_remainder) {
  Linear linear = held.linear;
  linear.keeps_remainder = keeps_remainder;
  const int num_rows = int(x.shape(0));
  require(int(x.shape(1)) == linear.num_in, "x is not as wide as the weight's inputs");
  require(epilogue >= 0 && epilogue <= 2, "epilogue is not 0, 1 or 2");
  const bool is_gated = Epilogue(epilogue) == Epilogue::kSiluMul;
  require(!is_gated || (linear.parts.size() == 1 && linear.num_out % 32 == 0),
          "a gated product has one weight of gate and up panels in turn");
  require(int(y.shape(0)) == num_rows &&
              int(y.shape(1)) == (is_gated ? linear.num_out / 2 : linear.num_out),
          "y does not have the shape of the result");
  require(!norm_weight || int(norm_weight->size()) == linear.num_in,
          "the norm's weight is not as wide as x");
  nb::gil_scoped_release unlocked;
  DenormalsOff denormals_off;
  ActivationBuffer& buffer = *engine.activations;
  prepare(*engine.kernels, *engine.threads, linear, x.data(), linear.num_in, num_rows,
          norm_weight ? norm_weight->data() : nullptr, eps, buffer);
  multiply(*engine.kernels, *engine.threads, linear, buffer, num_rows, y.data(),
           int64_t(y.shape(1)), Epilogue(epilogue));
}

void run_rms_norm(const Engine& engine, FloatRows x, Floats weight, float eps, FloatRows y) {
  require(x.shape(1) % kPanelRows == 0 && weight.size() == x.shape(1), "sizes of x and weight");
  require(y.shape(0) == x.shape(0) && y.shape(1) == x.shape(1), "y is not shaped like x");
  DenormalsOff denormals_off;
  engine.kernels->rms_norm(x.data(), int64_t(x.shape(1)), weight.data(), eps, int(x.shape(1)), 0,
                           int(x.shape(0)), y.data(), int64_t(y.shape(1)));
}

void run_silu_mul(const Engine& engine, FloatRows gate, FloatRows up, FloatRows y) {
  require(gate.shape(1) % kPanelRows == 0, "columns must be a multiple of 16");
  for (const FloatRows* each : {&up, &y})
    require(each->shape(0) == gate.shape(0) && each->shape(1) == gate.shape(1),
            "gate, up and y have different shapes");
  DenormalsOff denormals_off;
  engine.kernels->silu_mul(gate.data(), up.data(), int64_t(gate.shape(1)), int(gate.shape(1)), 0,
                           int(gate.shape(0)), y.data(), int64_t(y.shape(1)));
}

void run_embed(const Engine& engine, const Weight& table, Ids ids, FloatRows y) {
  require(y.shape(0) == ids.size() && int(y.shape(1)) == table.packed.num_in,
          "y is not len(ids) x the table's width");
  for (size_t i = 0; i < ids.size(); ++i)
    require(ids.data()[i] >= 0 && ids.data()[i] < table.packed.num_out, "an id is out of range");
  DenormalsOff denormals_off;
  engine.kernels->embed(table.packed, ids.data(), 0, int(ids.size()), y.data(),
                        int64_t(y.shape(1)));
}

Pool make_pool(Bytes memory, int num_layers, int block_size, int num_kv_heads, int head_dim,
               bool is_int8) {
  require(block_size > 0 && block_size % 16 == 0, "block_size is not a multiple of 16");
  require(head_dim > 0 && head_dim % 16 == 0 && head_dim <= kMaxHeadDim,
          "head_dim is not a multiple of 16 up to 256");
  require(num_layers > 0 && num_kv_heads > 0, "no layers or no heads");
  const int64_t per_head = int64_t(block_size) * (is_int8 ? head_dim + 4 : 2 * head_dim);
  const int64_t layer_bytes = 2 * num_kv_heads * per_head;
  const int64_t block_bytes = num_layers * layer_bytes;
  return {{memory.data(), block_bytes, 0, block_size, num_kv_heads, head_dim,
           is_int8 ? KvForm::kInt8 : KvForm::kBf16},
          layer_bytes,
          int64_t(memory.size()) / block_bytes,
          memory};
}

void run_rotary_write(const Engine& engine, const Pool& pool, int layer, FloatRows qkv,
                      int num_heads, std::optional<Floats> q_norm, std::optional<Floats> k_norm,
                      float eps, Array<const float, 2> cos, Array<const float, 2> sin, Ids slots) {
  const int head_dim = pool.layer.head_dim, num_rows = int(qkv.shape(0));
  require(int(qkv.shape(1)) == (num_heads + 2 * pool.layer.num_kv_heads) * head_dim,
          "qkv has another width");
  require(int(cos.shape(0)) == num_rows && int(sin.shape(0)) == num_rows &&
              int(cos.shape(1)) == head_dim / 2 && int(sin.shape(1)) == head_dim / 2 &&
              int(slots.size()) == num_rows,
          "cos, sin or slots do not match qkv");
  for (int i = 0; i < num_rows; ++i)
    require(slots.data()[i] >= 0 && slots.data()[i] < pool.num_blocks * pool.layer.block_size,
            "a slot is outside the pool");
  require(layer >= 0 && (layer + 1) * pool.layer_bytes <= pool.layer.block_bytes,
          "layer " + std::to_string(layer) + " is not in the pool");
  KvLayer kv = pool.layer;
  kv.layer_offset = layer * pool.layer_bytes;
  const RotaryArgs args{qkv.data(),
                        int64_t(qkv.shape(1)),
                        num_heads,
                        q_norm ? q_norm->data() : nullptr,
                        k_norm ? k_norm->data() : nullptr,
                        eps,
                        cos.data(),
                        sin.data(),
                        slots.data()};
  nb::gil_scoped_release unlocked;
  DenormalsOff denormals_off;
  for_rows(*engine.threads, num_rows, 16,
           [&](int begin, int end) { engine.kernels->rotary_write(args, kv, begin, end); });
}

void run_attention(const Engine& engine, const Pool& pool, int layer, FloatRows q, int num_heads,
                   const std::vector<std::array<int32_t, 3>>& rows, const nb::list& block_ids,
                   float scale, int window, FloatRows out) {
  const int width = num_heads * pool.layer.head_dim;
  require(num_heads % pool.layer.num_kv_heads == 0, "heads are not a multiple of kv heads");
  require(int(q.shape(1)) >= width && int(out.shape(1)) == width && q.shape(0) == out.shape(0),
          "q or out has another shape");
  require(window >= 0, "window is negative");
  const Spans spans = read_spans(rows, block_ids, pool, int(q.shape(0)));
  require(layer >= 0 && (layer + 1) * pool.layer_bytes <= pool.layer.block_bytes,
          "layer " + std::to_string(layer) + " is not in the pool");
  KvLayer kv = pool.layer;
  kv.layer_offset = layer * pool.layer_bytes;
  const AttentionArgs args{q.data(),
                           int64_t(q.shape(1)),
                           out.data(),
                           int64_t(out.shape(1)),
                           num_heads,
                           scale,
                           window,
                           spans.spans.data(),
                           int(spans.spans.size())};
  nb::gil_scoped_release unlocked;
  DenormalsOff denormals_off;
  engine.kernels->attention(args, kv, *engine.threads);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* name : {"avx512", "avx2", "portable"})
    if (find_kernels(name) != nullptr) names.push_back(name);
  return names;
}

}  // namespace

Spans read_spans(const std::vector<std::array<int32_t, 3>>& rows, const nb::list& block_ids,
                 const Pool& pool, int num_tokens) {
  require(rows.size() == nb::len(block_ids), "spans and block_ids differ in number");
  const int block_size = pool.layer.block_size;
  Spans result;
  size_t total = 0;
  for (nb::handle ids : block_ids) total += nb::len(ids);
  result.blocks.reserve(total);  // so that pointers into it stay
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [start, count, context_len] = rows[i];
    const size_t first = result.blocks.size();
    for (nb::handle id : block_ids[i]) {
      const int32_t block = nb::cast<int32_t>(id);
      require(block >= 0 && block < pool.num_blocks, "a block id is outside the pool");
      result.blocks.push_back(block);
    }
    require(start >= 0 && count > 0 && count <= context_len && start + count <= num_tokens &&
                int64_t(result.blocks.size() - first) * block_size >= context_len,
            "span " + std::to_string(i) + " does not fit its rows or blocks");
    result.spans.push_back({start, count, context_len, result.blocks.data() + first});
  }
  return result;
}

}  // namespace baton

NB_MODULE(_native, module) {
  using namespace baton;
  // A process may end while its daemon threads still hold objects: that is no leak.
  nb::set_leak_warnings(false);
  module.def("available_isas", &available_isas);
  nb::class_<Weight>(module, "Weight")
      .def(
          "__init__",
          [](Weight* self, int form, int num_out, int num_in, int group, int zero_point,
             bool has_half_scales, bool has_min, int64_t panel_bytes,
             Array<const uint8_t, 1> data) {
            new (self) Weight(make_weight(form, num_out, num_in, group, zero_point, has_half_scales,
                                          has_min, panel_bytes, data));
          },
          "form"_a, "num_out"_a, "num_in"_a, "group"_a, "zero_point"_a, "has_half_scales"_a,
          "has_min"_a, "panel_bytes"_a, "data"_a)
      .def_prop_ro("num_out", [](const Weight& self) { return self.packed.num_out; })
      .def_prop_ro("num_in", [](const Weight& self) { return self.packed.num_in; });
  nb::class_<Engine>(module, "Kernels")
      .def(
          "__init__",
          [](Engine* self, int num_threads, std::optional<std::string> isa, std::vector<int> cores,
             double spin_us) {
            new (self) Engine(make_engine(num_threads, isa, std::move(cores), spin_us));
          },
          "num_threads"_a, "isa"_a = nb::none(), "cores"_a = std::vector<int>{}, "spin_us"_a = 50.0)
      .def_prop_ro("isa", [](const Engine& self) { return self.kernels->name; })
      .def_prop_ro("num_threads", [](const Engine& self) { return self.threads->num_threads(); })
      .def("limit_threads", &limit_threads, "num_working"_a)
      .def("linear", &run_linear, "linear"_a, "x"_a, "y"_a, "epilogue"_a = 0,
           "norm_weight"_a = nb::none(), "eps"_a = 0.0f, "keeps_remainder"_a = false)
      .def("rms_norm", &run_rms_norm, "x"_a, "weight"_a, "eps"_a, "y"_a)
      .def("silu_mul", &run_silu_mul, "gate"_a, "up"_a, "y"_a)
      .def("embed", &run_embed, "table"_a, "ids"_a, "y"_a)
      .def("rotary_write", &run_rotary_write, "pool"_a, "layer"_a, "qkv"_a, "num_heads"_a,
           "q_norm"_a.none(), "k_norm"_a.none(), "eps"_a, "cos"_a, "sin"_a, "slots"_a)
      .def("attention", &run_attention, "pool"_a, "layer"_a, "q"_a, "num_heads"_a, "spans"_a,
           "block_ids"_a, "scale"_a, "window"_a, "out"_a);
  nb::class_<HeldLinear>(module, "Linear")
      .def(
          "__init__",
          [](HeldLinear* self, std::vector<Part> parts) {
            new (self) HeldLinear(make_linear(std::move(parts)));
          },
          "parts"_a)
      .def_prop_ro("num_out", [](const HeldLinear& self) { return self.linear.num_out; })
      .def_prop_ro("num_in", [](const HeldLinear& self) { return self.linear.num_in; });
  nb::class_<Pool>(module, "Pool")
      .def(
          "__init__",
          [](Pool* self, Bytes memory, int num_layers, int block_size, int num_kv_heads,
             int head_dim, bool is_int8) {
            new (self)
                Pool(make_pool(memory, num_layers, block_size, num_kv_heads, head_dim, is_int8));
          },
          "memory"_a, "num_layers"_a, "block_size"_a, "num_kv_heads"_a, "head_dim"_a, "is_int8"_a)
      .def_prop_ro("num_blocks", [](const Pool& self) { return self.num_blocks; });
  bind_byte_mover(module);
  bind_decoder(module);
  bind_sampler(module);
}
