// What the parts of the Python module share: arrays, and objects that keep arrays alive.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"
#include "kernels.h"
#include "multiply.h"

namespace baton {

namespace nb = nanobind;

template <class T, size_t kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
using Floats = Array<const float, 1>;
using FloatRows = Array<float, 2>;
using Bytes = Array<uint8_t, 1>;
using Ids = Array<const int64_t, 1>;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// A packed weight and the array that holds its bytes.
struct Weight {
  PackedWeight packed;
  Array<const uint8_t, 1> data;
};

// A Linear and what keeps its arrays alive.
struct HeldLinear {
  Linear linear;
  std::vector<nb::object> weights;
  std::vector<std::optional<Floats>> biases;
};

// The pool of KV blocks, layer 0, and how far layers are apart.
struct Pool {
  KvLayer layer;
  int64_t layer_bytes;
  int64_t num_blocks;
  Bytes memory;
};

// Spans with their block ids, flat.
struct Spans {
  std::vector<int32_t> blocks;
  std::vector<Span> spans;
};

// Raises for spans that do not fit the pool or `num_tokens` rows. `rows`: (start, number of rows,
// context length) each.
Spans read_spans(const std::vector<std::array<int32_t, 3>>& rows, const nb::list& block_ids,
                 const Pool& pool, int num_tokens);

}  // namespace baton
