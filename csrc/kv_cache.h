// Where a key or a value lies in the pool: address arithmetic of KvLayer, nothing else.
//
// Elsewhere: what the layout is (kernels.h), who holds which block (kvcache/ in Python), writing
// (kv_write.cpp), reading (attention.cpp). Internal linkage, as each instruction set compiles it.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace baton {

constexpr int kKeyGroup = 16;  // keys side by side in a register, one per lane

static inline int64_t element_bytes(KvForm form) { return form == KvForm::kInt8 ? 1 : 2; }

// The keys, or the values, of one kv head in a block.
static inline int64_t head_bytes(const KvLayer& kv) {
  return int64_t(kv.block_size) * kv.head_dim * element_bytes(kv.form);
}

static inline int64_t scale_bytes(const KvLayer& kv) {
  return kv.form == KvForm::kInt8 ? int64_t(kv.block_size) * int64_t(sizeof(float)) : 0;
}

// What one layer takes in a block.
static inline int64_t layer_bytes(const KvLayer& kv) {
  return 2 * kv.num_kv_heads * (head_bytes(kv) + scale_bytes(kv));
}

static inline uint8_t* layer_at(const KvLayer& kv, int64_t block) {
  return kv.pool + block * kv.block_bytes + kv.layer_offset;
}

static inline uint8_t* keys_at(const KvLayer& kv, int64_t block, int head) {
  return layer_at(kv, block) + head * head_bytes(kv);
}

static inline uint8_t* values_at(const KvLayer& kv, int64_t block, int head) {
  return layer_at(kv, block) + (kv.num_kv_heads + head) * head_bytes(kv);
}

// [S] floats; kInt8 only.
static inline float* key_scales_at(const KvLayer& kv, int64_t block, int head) {
  uint8_t* scales = layer_at(kv, block) + 2 * kv.num_kv_heads * head_bytes(kv);
  return reinterpret_cast<float*>(scales + head * scale_bytes(kv));
}

static inline float* value_scales_at(const KvLayer& kv, int64_t block, int head) {
  return key_scales_at(kv, block, kv.num_kv_heads + head);
}

// Element of keys_at for dim 0 of the key at `offset` in its block; dims 2i and 2i+1 are
// neighbours, kKeyPairStride elements after dims 2i-2 and 2i-1.
constexpr int kKeyPairStride = 2 * kKeyGroup;
static inline int64_t key_index(const KvLayer& kv, int offset) {
  return int64_t(offset / kKeyGroup) * kKeyGroup * kv.head_dim + 2 * (offset % kKeyGroup);
}

// Element of values_at for dim 0 of the key at `offset`; dims are 2 elements apart.
static inline int64_t value_index(const KvLayer& kv, int offset) {
  return int64_t(offset / 2) * 2 * kv.head_dim + offset % 2;
}

}  // namespace baton
