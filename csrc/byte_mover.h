// Moving many ranges of bytes in one call: memory to memory, memory to a socket, a socket to
// memory.
//
// Nothing here waits: sockets are used without blocking, and copying stops between two pieces when
// another thread says so. Ranges are checked by whoever makes them (byte_mover_bindings.cpp).
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace baton {

struct CopyRange {
  int64_t source;
  int64_t target;
  int64_t num_bytes;
};

// Copies ranges in order, a part of them per call. One thread advances; any thread stops it.
class CopyRun {
 public:
  // No piece is larger, so that a stop waits for about 0.1 ms at most.
  static constexpr int64_t kPieceBytes = 1 << 20;

  CopyRun(const char* source, char* target, std::vector<CopyRange> ranges)
      : source_(source), target_(target), ranges_(std::move(ranges)) {}

  // Until `max_bytes` are copied (a piece more at most), all is done, or somebody stops it.
  void advance(int64_t max_bytes);
  void stop() { is_stopped_.store(true, std::memory_order_relaxed); }
  bool is_finished() const { return current_ == ranges_.size(); }
  int64_t num_bytes_moved() const { return num_bytes_moved_.load(std::memory_order_relaxed); }

 private:
  const char* source_;
  char* target_;
  std::vector<CopyRange> ranges_;
  size_t current_ = 0;
  int64_t done_of_current_ = 0;
  std::atomic<int64_t> num_bytes_moved_{0};
  std::atomic<bool> is_stopped_{false};
};

// What a socket did: `num_bytes` of 0 with `error` 0 is nothing for now.
struct SocketResult {
  int64_t num_bytes = 0;
  int error = 0;
  bool is_end = false;
};

// Bytes on their way into a socket: short texts of its own, and ranges of one region in between.
class SendRun {
 public:
  SendRun(const char* region, int64_t region_bytes)
      : region_(region), region_bytes_(region_bytes) {}

  int64_t region_bytes() const { return region_bytes_; }
  int64_t num_bytes() const { return num_bytes_; }
  void add_text(std::string text);
  void add_range(int64_t start, int64_t end);
  void clear();
  // Until `max_bytes` are sent (a system call's more at most) or the socket takes no more.
  SocketResult send(int fd, int64_t max_bytes);

 private:
  void drop_front(int64_t num_bytes);

  const char* region_;
  int64_t region_bytes_;
  int64_t num_bytes_ = 0;
  std::deque<iovec> parts_;
  std::deque<std::string> texts_;  // those that `parts_` point to, in order
};

// Ranges of one region that are to be filled in order with what comes out of a socket.
class ReceiveRun {
 public:
  ReceiveRun(char* region, int64_t region_bytes) : region_(region), region_bytes_(region_bytes) {}

  int64_t region_bytes() const { return region_bytes_; }
  int64_t num_bytes_left() const { return num_bytes_left_; }
  void expect(std::vector<iovec> targets);
  // So many bytes that are to be skipped.
  void expect_unwanted(int64_t num_bytes);
  char* at(int64_t offset) const { return region_ + offset; }
  // At most `max_bytes`; what follows the last range goes to `beyond`, if all fits.
  SocketResult receive(int fd, int64_t max_bytes, iovec beyond);
  // As if these had been received. At most `num_bytes_left`.
  void store(const char* bytes, int64_t num_bytes);
  // As if so many had been received, but they are dropped.
  void skip(int64_t num_bytes) { drop_front(num_bytes); }

 private:
  void drop_front(int64_t num_bytes);
  int choose_parts(int64_t max_bytes, iovec beyond);

  char* region_;
  int64_t region_bytes_;
  int64_t num_bytes_left_ = 0;
  size_t current_ = 0;
  std::vector<iovec> targets_;
  std::vector<iovec> parts_;
};

}  // namespace baton
