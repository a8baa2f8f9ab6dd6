// The tables of kernels, one for each instruction set, and which of them this CPU can run.
#include <cstring>

#include "kernels.h"

namespace baton {

#define BATON_DECLARE(isa)                                                                   \
  namespace isa {                                                                            \
  void quantize(const float*, int64_t, int, int, const Activations&);                        \
  void rms_norm(const float*, int64_t, const float*, float, int, int, int, float*, int64_t); \
  void rms_norm_quantize(const float*, int64_t, const float*, float, int, int,               \
                         const Activations&);                                                \
  void linear(const LinearArgs&, int, int, int, int);                                        \
  void embed(const PackedWeight&, const int64_t*, int, int, float*, int64_t);                \
  void silu_mul(const float*, const float*, int64_t, int, int, int, float*, int64_t);        \
  void rotary_write(const RotaryArgs&, const KvLayer&, int, int);                            \
  void attention(const AttentionArgs&, const KvLayer&, ThreadPool&);                         \
  }                                                                                          \
  static constexpr KernelTable k_##isa{                                                      \
      #isa,       isa::quantize, isa::rms_norm,     isa::rms_norm_quantize, isa::linear,     \
      isa::embed, isa::silu_mul, isa::rotary_write, isa::attention};

BATON_DECLARE(portable)
#if defined(__x86_64__)
BATON_DECLARE(avx2)
BATON_DECLARE(avx512)
#endif
#undef BATON_DECLARE

namespace {

struct Candidate {
  const KernelTable* table;
  bool can_run;
};

}  // namespace

const KernelTable* find_kernels(const char* name) {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  const Candidate candidates[] = {
      {&k_avx512, has_avx512}, {&k_avx2, has_avx2}, {&k_portable, true}};
#else
  const Candidate candidates[] = {{&k_portable, true}};
#endif
  for (const Candidate& each : candidates)
    if (each.can_run && (name == nullptr || std::strcmp(name, each.table->name) == 0))
      return each.table;
  return nullptr;
}

}  // namespace baton
