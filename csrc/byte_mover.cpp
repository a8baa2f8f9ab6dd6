#include "byte_mover.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace baton {
namespace {

constexpr size_t kMaxParts = 1024;  // IOV_MAX of Linux

void advance_part(iovec& part, size_t num_bytes) {
  part.iov_base = static_cast<char*>(part.iov_base) + num_bytes;
  part.iov_len -= num_bytes;
}

// The outcome of a turn whose last system call failed. What moved before is told first; a broken
// connection says so again.
SocketResult after_failure(int64_t moved) {
  const bool is_full = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  return {moved, is_full || moved > 0 ? 0 : errno, false};
}

}  // namespace

void CopyRun::advance(int64_t max_bytes) {
  while (max_bytes > 0 && !is_finished() && !is_stopped_.load(std::memory_order_relaxed)) {
    const CopyRange& range = ranges_[current_];
    const int64_t length = std::min(kPieceBytes, range.num_bytes - done_of_current_);
    std::memmove(target_ + range.target + done_of_current_,
                 source_ + range.source + done_of_current_, size_t(length));
    num_bytes_moved_.fetch_add(length, std::memory_order_relaxed);
    max_bytes -= length;
    done_of_current_ += length;
    if (done_of_current_ == range.num_bytes) {
      done_of_current_ = 0;
      ++current_;
    }
  }
}

void SendRun::add_text(std::string text) {
  num_bytes_ += int64_t(text.size());
  texts_.push_back(std::move(text));
  parts_.push_back({texts_.back().data(), texts_.back().size()});
}

void SendRun::add_range(int64_t start, int64_t end) {
  num_bytes_ += end - start;
  parts_.push_back({const_cast<char*>(region_) + start, size_t(end - start)});
}

void SendRun::clear() {
  parts_.clear();
  texts_.clear();
  num_bytes_ = 0;
}

SocketResult SendRun::send(int fd, int64_t max_bytes) {
  SocketResult result;
  std::vector<iovec> parts;
  while (num_bytes_ > 0 && result.num_bytes < max_bytes) {
    const size_t count = std::min(parts_.size(), kMaxParts);
    parts.assign(parts_.begin(), parts_.begin() + ptrdiff_t(count));
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return after_failure(result.num_bytes);
    result.num_bytes += sent;
    drop_front(sent);
  }
  return result;
}

void SendRun::drop_front(int64_t num_bytes) {
  num_bytes_ -= num_bytes;
  while (num_bytes > 0) {
    iovec& part = parts_.front();
    const size_t length = std::min(part.iov_len, size_t(num_bytes));
    advance_part(part, length);
    num_bytes -= int64_t(length);
    if (part.iov_len > 0) return;
    const char* end = static_cast<char*>(part.iov_base);
    parts_.pop_front();
    if (!texts_.empty() && end == texts_.front().data() + texts_.front().size()) texts_.pop_front();
  }
}

void ReceiveRun::expect(std::vector<iovec> targets) {
  targets_ = std::move(targets);
  current_ = 0;
  num_bytes_left_ = 0;
  for (const iovec& each : targets_) num_bytes_left_ += int64_t(each.iov_len);
}

void ReceiveRun::expect_unwanted(int64_t num_bytes) {
  expect({});
  num_bytes_left_ = num_bytes;
}

SocketResult ReceiveRun::receive(int fd, int64_t max_bytes, iovec beyond) {
  SocketResult result;
  while (num_bytes_left_ > 0 && result.num_bytes < max_bytes) {
    msghdr message{};
    message.msg_iovlen = size_t(choose_parts(max_bytes - result.num_bytes, beyond));
    message.msg_iov = parts_.data();
    const ssize_t received = recvmsg(fd, &message, MSG_DONTWAIT);
    if (received < 0) return after_failure(result.num_bytes);
    if (received == 0) {
      result.is_end = result.num_bytes == 0;
      return result;
    }
    result.num_bytes += received;
    drop_front(std::min(int64_t(received), num_bytes_left_));
  }
  return result;
}

int ReceiveRun::choose_parts(int64_t max_bytes, iovec beyond) {
  parts_.clear();
  for (size_t i = current_; i < targets_.size() && max_bytes > 0; ++i) {
    iovec part = targets_[i];
    part.iov_len = std::min(part.iov_len, size_t(max_bytes));
    max_bytes -= int64_t(part.iov_len);
    parts_.push_back(part);
    if (parts_.size() == kMaxParts) return int(kMaxParts);
  }
  if (max_bytes > 0) parts_.push_back(beyond);
  return int(parts_.size());
}

void ReceiveRun::store(const char* bytes, int64_t num_bytes) {
  for (size_t i = current_; num_bytes > 0 && i < targets_.size(); ++i) {
    const size_t length = std::min(targets_[i].iov_len, size_t(num_bytes));
    std::memcpy(targets_[i].iov_base, bytes, length);
    bytes += length;
    num_bytes -= int64_t(length);
  }
}

void ReceiveRun::drop_front(int64_t num_bytes) {
  num_bytes_left_ -= num_bytes;
  while (num_bytes > 0 && current_ < targets_.size()) {
    iovec& target = targets_[current_];
    const size_t length = std::min(target.iov_len, size_t(num_bytes));
    advance_part(target, length);
    num_bytes -= int64_t(length);
    if (target.iov_len == 0) ++current_;
  }
}

}  // namespace baton
