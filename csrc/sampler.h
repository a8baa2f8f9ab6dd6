// The choice of next tokens, and logprobs, for the rows of a batch.
//
// A token is a pure function of its row of logits and its `Choice`: weights are whole numbers
// (logit_passes.h), and what follows is integer arithmetic. So it is the same in any batch, on any
// number of threads and on any machine.
//
// Elsewhere: the same in numpy, to read (engine/sampler_reference.py); penalties and biases, which
// change the logits before they come here (engine/sampler.py).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "logit_passes.h"

namespace baton {

class ThreadPool;

// What a draw returns for logits without a distribution: a NaN among them, or no finite best.
constexpr int kNoToken = -1;

// How to choose the token at `position`. Filters apply in the order top_k, top_p, min_p.
struct Choice {
  double temperature;  // 0: the best token
  int64_t top_k;       // 0 or less: no limit; 1: the best token
  double top_p;        // 1: no limit
  double min_p;        // of the best token's weight; 0: no limit
  uint64_t seed;
  uint64_t position;
};

struct LogitRow {
  const float* logits;
  int num;  // V
};

struct Logprobs {
  double chosen;
  std::vector<std::pair<int, double>> top;  // (token, logprob), best first; ties: lower id first
};

// 53 random bits that are a function of (seed, position): those of numpy's
// Generator(Philox(key=seed, counter=[position, 0, 0, 0])).random().
uint64_t random_bits(uint64_t seed, uint64_t position);

// Not reentrant: one call at a time. `threads` null: the calling thread does it all.
class Sampler {
 public:
  Sampler(const LogitPasses& passes, ThreadPool* threads);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // tokens[i] is drawn from rows[i]. Of equals greedy choice takes the lowest id.
  void choose(const std::vector<LogitRow>& rows, const std::vector<Choice>& choices, int* tokens);

  // Natural logarithms of the distribution that the logits give at temperature 1: of tokens[i], and
  // the num_top[i] best. NaN, and no top, where there is no distribution.
  void logprobs(const std::vector<LogitRow>& rows, const std::vector<int>& tokens,
                const std::vector<int>& num_top, Logprobs* results);

 private:
  class Row;

  template <class F>
  void for_rows(const std::vector<LogitRow>& rows, const F& work);

  const LogitPasses& passes_;
  ThreadPool* const threads_;
  std::vector<std::unique_ptr<Row>> row_of_thread_;
};

}  // namespace baton
