#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace baton {
namespace {

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

constexpr int kPausesPerClockRead = 32;
constexpr int kPausesBeforeYield = 2000;

// Fields of a ticket: 16 bits of job number, 24 of the share's end, 24 of its next piece.
constexpr int kPieceBits = 24;
constexpr uint64_t kPieceMask = (1u << kPieceBits) - 1;
constexpr int kJobShift = 2 * kPieceBits;

uint64_t job_of(uint64_t ticket) { return ticket >> kJobShift; }
uint64_t end_of(uint64_t ticket) { return (ticket >> kPieceBits) & kPieceMask; }
uint64_t next_of(uint64_t ticket) { return ticket & kPieceMask; }

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::vector<int> cores, int64_t spin_ns)
    : cores_(std::move(cores)),
      spin_ns_(spin_ns),
      shares_(size_t(num_threads)),
      num_working_(num_threads) {
  for (int thread = 1; thread < num_threads; ++thread)
    workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(int num_pieces, Piece function, void* job) {
  if (num_pieces <= 0) return;
  const uint64_t num_shares = uint64_t(num_working_.load(std::memory_order_relaxed));
  if (num_pieces == 1 || num_shares == 1) {
    for (int piece = 0; piece < num_pieces; ++piece) function(job, piece, 0);
    return;
  }
  function_ = function;
  job_ = job;
  num_done_.store(0, std::memory_order_relaxed);
  const uint64_t number = job_of(shares_[0].ticket.load(std::memory_order_relaxed)) + 1;
  for (uint64_t i = 0; i < num_shares; ++i) {
    const uint64_t begin = uint64_t(num_pieces) * i / num_shares;
    const uint64_t end = uint64_t(num_pieces) * (i + 1) / num_shares;
    shares_[i].ticket.store(number << kJobShift | end << kPieceBits | begin,
                            std::memory_order_seq_cst);
  }
  if (num_sleeping_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard lock(mutex_);  // A thread about to sleep looks at the ticket under it.
    wake_.notify_all();
  }
  take_pieces(0);
  wait_until_reaches(num_done_, num_pieces);
}

void ThreadPool::take_pieces(int thread) {
  const size_t num_shares = shares_.size();
  for (size_t i = 0; i < num_shares; ++i)
    take_share(shares_[(size_t(thread) + i) % num_shares], thread);
}

void ThreadPool::take_share(Share& share, int thread) {
  for (;;) {
    const uint64_t seen = share.ticket.load(std::memory_order_relaxed);
    if (next_of(seen) >= end_of(seen)) return;
    const uint64_t ticket = share.ticket.fetch_add(1, std::memory_order_acq_rel);
    const uint64_t piece = next_of(ticket);
    if (piece >= end_of(ticket)) return;
    function_(job_, int(piece), thread);
    num_done_.fetch_add(1, std::memory_order_release);
  }
}

bool ThreadPool::wait_for_job(const Share& own, uint64_t seen) {
  const auto has_job = [&] {
    return job_of(own.ticket.load(std::memory_order_seq_cst)) != seen || is_stopping_;
  };
  const int64_t give_up = now_ns() + spin_ns_;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (has_job()) return !is_stopping_;
      pause_briefly();
    }
  } while (now_ns() < give_up);
  std::unique_lock lock(mutex_);
  num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, has_job);
  num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
  return !is_stopping_;
}

void ThreadPool::work(int thread) {
  DenormalsOff denormals_off;
  if (size_t(thread) <= cores_.size()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores_[size_t(thread) - 1], &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  }
  const Share& own = shares_[size_t(thread)];
  uint64_t seen = 0;
  while (wait_for_job(own, seen)) {
    seen = job_of(own.ticket.load(std::memory_order_acquire));
    take_pieces(thread);
  }
}

void wait_until_reaches(const std::atomic<int>& counted, int wanted) {
  for (int i = 0; counted.load(std::memory_order_acquire) < wanted; ++i) {
    pause_briefly();
    // Who counts may have lost its core: let it have this one.
    if (i > kPausesBeforeYield) sched_yield();
  }
}

DenormalsOff::DenormalsOff() : saved_(0) {
#if defined(__x86_64__)
  saved_ = _mm_getcsr();
  _mm_setcsr(saved_ | 0x8040);  // flush results to zero, read denormals as zero
#endif
}

DenormalsOff::~DenormalsOff() {
#if defined(__x86_64__)
  _mm_setcsr(saved_);
#endif
}

}  // namespace baton
