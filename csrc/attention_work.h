// The memory that attention works in: carved from one allocation that is kept from call to call.
//
// Elsewhere: what is computed in it (attention.cpp, attention_tile.h).
#pragma once

#include <cstdlib>
#include <cstring>

#include "attention_tile.h"
#include "simd.h"

namespace baton::BATON_ISA {

// Memory that grows and is kept from call to call.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least `size` bytes, aligned to 64; what was there is lost.
  uint8_t* reserve(int64_t size) {
    if (size > size_) {
      std::free(memory_);
      size_ = (size + 63) / 64 * 64;
      memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_t(size_)));
      if (memory_ == nullptr) std::abort();
      std::memset(memory_, 0, size_t(size_));
    }
    return memory_;
  }

 private:
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0;
};

// Hands out consecutive aligned arrays; with a null base it only measures.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}

  template <class T>
  T* take(int64_t num) {
    T* const result = reinterpret_cast<T*>(base_ + used_);
    used_ += (num * int64_t(sizeof(T)) + 63) / 64 * 64;
    return result;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

// Softmax and weighted values of some rows over some keys, not yet divided.
struct Partial {
  float* peak;   // rows + 16, -inf where a row saw no key
  float* total;  // rows: sum of weights
  float* out;    // rows x D

  static Partial carve(Carver& carver, int num_rows, int head_dim) {
    return {carver.take<float>(num_rows + kLanes), carver.take<float>(num_rows),
            carver.take<float>(int64_t(num_rows) * head_dim)};
  }
};

// What a thread needs for a piece.
struct Workspace {
  uint16_t* q;
  int32_t* first;
  int32_t* end;
  float* sums;  // rows x 16
  Partial segment;
  Partial whole;
  uint16_t* keys;  // a tile's, expanded from int8
  uint16_t* values;
  float* key_scales;  // a tile's
  float* value_scales;

  static Workspace carve(Carver& carver, int num_rows, int head_dim) {
    return {carver.take<uint16_t>(int64_t(num_rows) * head_dim),
            carver.take<int32_t>(num_rows),
            carver.take<int32_t>(num_rows),
            carver.take<float>(int64_t(num_rows) * kLanes),
            Partial::carve(carver, num_rows, head_dim),
            Partial::carve(carver, num_rows, head_dim),
            carver.take<uint16_t>(int64_t(kTileKeys) * head_dim),
            carver.take<uint16_t>(int64_t(kTileKeys) * head_dim),
            carver.take<float>(kTileKeys),
            carver.take<float>(kTileKeys)};
  }
};

}  // namespace baton::BATON_ISA
