// The class baton.kernels._native.Sampler: sizes and ranges checked, the interpreter lock released
// while it works. Elsewhere: what it does (sampler.h).
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "sampler.h"

using namespace nanobind::literals;

namespace baton {
namespace {

// Below, dividing by it takes logits out of float's range.
constexpr double kLowestTemperature = 1e-6;

// temperature, top_k, top_p, min_p, seed, position
using ChoiceFields = std::tuple<double, int64_t, double, double, uint64_t, uint64_t>;
using LogprobsFields = std::pair<double, std::vector<std::pair<int, double>>>;

std::vector<LogitRow> read_rows(const std::vector<Floats>& arrays) {
  std::vector<LogitRow> rows;
  rows.reserve(arrays.size());
  for (const Floats& each : arrays) {
    require(each.size() > 0 && each.size() <= size_t(1) << 20, "a row has no or over 2^20 logits");
    rows.push_back({each.data(), int(each.size())});
  }
  return rows;
}

Choice read_choice(const ChoiceFields& fields) {
  const auto [temperature, top_k, top_p, min_p, seed, position] = fields;
  require(temperature == 0.0 || (temperature >= kLowestTemperature && std::isfinite(temperature)),
          "temperature is neither 0 nor from 1e-6 up");
  require(top_p > 0.0 && top_p <= 1.0, "top_p is not above 0 and at most 1");
  require(min_p >= 0.0 && min_p <= 1.0, "min_p is not from 0 to 1");
  return {temperature, top_k, top_p, min_p, seed, position};
}

Sampler make_sampler(const Engine* engine) {
  const KernelTable* kernels = engine ? engine->kernels : find_kernels(nullptr);
  return Sampler(*find_logit_passes(kernels->name), engine ? engine->threads.get() : nullptr);
}

std::vector<int> choose(Sampler& sampler, const std::vector<Floats>& arrays,
                        const std::vector<ChoiceFields>& fields) {
  require(arrays.size() == fields.size(), "rows and choices differ in number");
  const std::vector<LogitRow> rows = read_rows(arrays);
  std::vector<Choice> choices;
  choices.reserve(fields.size());
  for (const ChoiceFields& each : fields) choices.push_back(read_choice(each));
  std::vector<int> tokens(rows.size());
  nb::gil_scoped_release unlocked;
  sampler.choose(rows, choices, tokens.data());
  return tokens;
}

std::vector<LogprobsFields> logprobs(Sampler& sampler, const std::vector<Floats>& arrays,
                                     const std::vector<int>& tokens,
                                     const std::vector<int>& num_top) {
  require(arrays.size() == tokens.size() && arrays.size() == num_top.size(),
          "rows, tokens and num_top differ in number");
  const std::vector<LogitRow> rows = read_rows(arrays);
  for (size_t i = 0; i < rows.size(); ++i) {
    require(tokens[i] >= 0 && tokens[i] < rows[i].num, "a token is outside its row");
    require(num_top[i] >= 0 && num_top[i] <= rows[i].num, "num_top is negative or above V");
  }
  std::vector<Logprobs> results(rows.size());
  {
    nb::gil_scoped_release unlocked;
    sampler.logprobs(rows, tokens, num_top, results.data());
  }
  std::vector<LogprobsFields> fields;
  fields.reserve(results.size());
  for (Logprobs& each : results) fields.emplace_back(each.chosen, std::move(each.top));
  return fields;
}

}  // namespace
}  // namespace baton

void bind_sampler(nanobind::module_& module) {
  using namespace baton;
  nb::class_<Sampler>(module, "Sampler")
      .def(
          "__init__",
          [](Sampler* self, const Engine* kernels) { new (self) Sampler(make_sampler(kernels)); },
          "kernels"_a.none() = nb::none(), nb::keep_alive<1, 2>())
      .def("choose", &choose, "rows"_a, "choices"_a)
      .def("logprobs", &logprobs, "rows"_a, "tokens"_a, "num_top"_a);
  module.def("random_bits", &random_bits, "seed"_a, "position"_a);
}
