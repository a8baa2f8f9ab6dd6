// The module baton.router._event_bytes: what the router looks for in every stream's bytes.
// Plain loops that compilers turn into vectors of the baseline (SSE2, NEON): at 0.05 ns per byte,
// more instruction sets would gain less than the call costs.
// Elsewhere: what it means (router/rejections.py).
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstring>

namespace nb = nanobind;
using namespace nanobind::literals;

namespace baton {
namespace {

constexpr size_t kNeedleBytes = 7;  // "error" and "abort", quotes included
constexpr size_t kBlockBytes = 256;

bool is_needle(const char* at) {
  return std::memcmp(at, "\"error\"", kNeedleBytes) == 0 ||
         std::memcmp(at, "\"abort\"", kNeedleBytes) == 0;
}

// What both needles have and JSON seldom: quotes six apart around "ro" or "or", which are the same
// by exclusive or. Without a branch per byte, or compilers make no vectors of it.
bool may_begin_within(const char* begin, size_t num_starts) {
  constexpr char kMiddle = 'r' ^ 'o';
  unsigned char found = 0;
  for (size_t i = 0; i < num_starts; ++i)
    found |= (begin[i] == '"') & ((begin[i + 3] ^ begin[i + 4]) == kMiddle) & (begin[i + 6] == '"');
  return found != 0;
}

bool mentions_error(const char* begin, size_t num_bytes) {
  if (num_bytes < kNeedleBytes) return false;
  const char* const end_of_starts = begin + num_bytes - kNeedleBytes + 1;
  while (begin < end_of_starts) {
    const size_t num_starts = std::min<size_t>(kBlockBytes, end_of_starts - begin);
    if (may_begin_within(begin, num_starts))
      for (size_t i = 0; i < num_starts; ++i)
        if (is_needle(begin + i)) return true;
    begin += num_starts;
  }
  return false;
}

}  // namespace
}  // namespace baton

NB_MODULE(_event_bytes, m) {
  m.def(
      "mentions_error",
      [](nb::bytes events) { return baton::mentions_error(events.c_str(), events.size()); },
      "events"_a);
}
