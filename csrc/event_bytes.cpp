// The module baton.router._event_bytes: what the router looks for in every stream's bytes.
// Searches are plain loops that compilers turn into vectors of the baseline (SSE2, NEON): at 0.05
// ns per byte, more instruction sets would gain less than the call costs. Elsewhere: what it means
// (router/rejections.py, router/marks.py).
#include <nanobind/nanobind.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <string_view>

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

constexpr std::string_view kEnd = "\n\n", kMark = "\n\n: t ";

void append_ids(nb::list& ids, std::string_view numbers) {
  const char *at = numbers.data(), *const end = at + numbers.size();
  while (at < end) {
    int64_t id;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (next != end && *next != ' ')) {
      const nb::bytes mark(numbers.data(), numbers.size());
      PyErr_Format(PyExc_ValueError, "a mark is not token ids with spaces between them: %R",
                   mark.ptr());
      throw nb::python_error();
    }
    ids.append(id);
    at = next == end ? end : next + 1;
  }
}

nb::tuple cut_marks(nb::bytes bytes) {
  const std::string_view events(bytes.c_str(), bytes.size());
  std::string marked;
  marked.reserve(events.size());
  nb::list ids;
  size_t start = 0;
  while (true) {
    const size_t mark = events.find(kMark, start);
    if (mark == events.npos) break;
    const size_t numbers = mark + kMark.size(), end = events.find(kEnd, numbers);
    if (end == events.npos) break;
    marked += events.substr(start, mark + kEnd.size() - start);
    append_ids(ids, events.substr(numbers, end - numbers));
    start = end + kEnd.size();
  }
  const std::string_view rest = events.substr(start);
  return nb::make_tuple(nb::bytes(marked.data(), marked.size()), ids,
                        nb::bytes(rest.data(), rest.size()));
}

}  // namespace
}  // namespace baton

NB_MODULE(_event_bytes, m) {
  m.def(
      "mentions_error",
      [](nb::bytes events) { return baton::mentions_error(events.c_str(), events.size()); },
      "events"_a);
  m.def("cut_marks", baton::cut_marks, "events"_a);
}
