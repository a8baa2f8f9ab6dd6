// What Python's `Kernels` object holds: one instruction set and the threads to run it on.
//
// Elsewhere: how it is made and used (bindings.cpp, sampler_bindings.cpp).
#pragma once

#include <memory>

#include "kernels.h"
#include "multiply.h"
#include "thread_pool.h"

namespace baton {

struct Engine {
  const KernelTable* kernels;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<ActivationBuffer> activations;  // room for rounded activations
};

}  // namespace baton
