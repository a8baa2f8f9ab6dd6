// Threads that work through numbered pieces of a job together.
//
// Every thread has a share of neighbouring pieces, which it takes one by one, and then what is left
// of the others' shares: a thread that the system takes off its core holds up no more than the
// piece it has. Where jobs on the same rows follow each other, shares keep a thread on its own
// rows, which its caches have; fetching them from another core's can cost more than the work.
// Waiting spins for a short time (a step has a hundred small jobs, and waking a sleeping thread
// takes longer than some of them), then sleeps, so that an idle engine costs nothing and a
// neighbour's threads get the core.
//
// Invariant: which thread does which piece never shows in a result.
// Elsewhere: what a piece is (decoder.cpp, linear.cpp, attention.cpp).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace baton {

class ThreadPool {
 public:
  // `num_threads` counts the caller of `run`. `cores` are the ones to pin the others to, in order
  // (empty: let the system choose); the caller pins itself.
  ThreadPool(int num_threads, std::vector<int> cores, int64_t spin_ns);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return int(workers_.size()) + 1; }
  // Of these, how many work since the last `limit`.
  int num_working() const { return num_working_.load(std::memory_order_relaxed); }

  // From the next `run` on, only so many threads work; the others sleep, and leave their cores to
  // whoever needs them. From 1 to num_threads.
  void limit(int num_working) { num_working_.store(num_working, std::memory_order_relaxed); }

  using Piece = void (*)(void* job, int piece, int thread);

  // Calls `function(job, piece, thread)` once for each piece in [0, num_pieces); returns when all
  // are done. One caller at a time.
  void run(int num_pieces, Piece function, void* job);

  template <class F>
  void run(int num_pieces, const F& f) {
    run(
        num_pieces,
        [](void* job, int piece, int thread) { (*static_cast<const F*>(job))(piece, thread); },
        const_cast<F*>(&f));
  }

 private:
  // The number of the job, the end of the share, and its next piece, in one word: taking a piece
  // and knowing that there is one is a single step, however late a thread comes.
  struct alignas(64) Share {
    std::atomic<uint64_t> ticket{0};
  };

  void work(int thread);
  void take_pieces(int thread);
  void take_share(Share& share, int thread);
  bool wait_for_job(const Share& own, uint64_t seen);

  std::vector<std::thread> workers_;
  std::vector<int> cores_;
  const int64_t spin_ns_;

  // The job: written before the shares announce it, read only by who holds a piece of it.
  Piece function_ = nullptr;
  void* job_ = nullptr;

  // One for each thread; the first `num_working_` take part in a job.
  std::vector<Share> shares_;
  std::atomic<int> num_working_;
  alignas(64) std::atomic<int> num_done_{0};
  alignas(64) std::atomic<int> num_sleeping_{0};
  std::atomic<bool> is_stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Until other threads have counted so far.
void wait_until_reaches(const std::atomic<int>& counted, int wanted);

// While it lives, this thread flushes denormals to zero (see simd.h).
class DenormalsOff {
 public:
  DenormalsOff();
  ~DenormalsOff();

 private:
  unsigned saved_;
};

}  // namespace baton
