// The classes CopyRun, SendRun and ReceiveRun of baton.kernels._native: ranges checked, the
// interpreter lock released while bytes move. Addresses are numbers: whoever passes them keeps the
// memory mapped. Elsewhere: what they do (byte_mover.h).
#include <cerrno>
#include <utility>

#include "bindings.h"
#include "byte_mover.h"

using namespace nanobind::literals;

namespace baton {
namespace {

using Pairs = std::vector<std::pair<int64_t, int64_t>>;

void require_inside(int64_t start, int64_t end, int64_t region_bytes) {
  require(0 <= start && start < end && end <= region_bytes,
          "range [" + std::to_string(start) + ", " + std::to_string(end) +
              ") is empty or outside of the region of " + std::to_string(region_bytes) + " bytes");
}

CopyRun* make_copy_run(uintptr_t source, int64_t source_bytes, uintptr_t target,
                       int64_t target_bytes, Ids copies) {
  require(copies.size() % 3 == 0, "copies are not three numbers each");
  std::vector<CopyRange> ranges;
  ranges.reserve(copies.size() / 3);
  for (size_t i = 0; i < copies.size(); i += 3) {
    const int64_t from = copies.data()[i], to = copies.data()[i + 1];
    const int64_t num_bytes = copies.data()[i + 2];
    require_inside(from, from + num_bytes, source_bytes);
    require_inside(to, to + num_bytes, target_bytes);
    ranges.push_back({from, to, num_bytes});
  }
  return new CopyRun(reinterpret_cast<const char*>(source), reinterpret_cast<char*>(target),
                     std::move(ranges));
}

void add_ranges(SendRun& run, const Pairs& ranges) {
  for (const auto& [start, end] : ranges) require_inside(start, end, run.region_bytes());
  for (const auto& [start, end] : ranges) run.add_range(start, end);
}

void expect(ReceiveRun& run, const Pairs& ranges) {
  std::vector<iovec> targets;
  targets.reserve(ranges.size());
  for (const auto& [start, end] : ranges) {
    require_inside(start, end, run.region_bytes());
    targets.push_back({run.at(start), size_t(end - start)});
  }
  run.expect(std::move(targets));
}

// How many bytes; 0 for nothing now; -1 at the end of the stream. Raises OSError.
int64_t told(const SocketResult& result) {
  if (result.error == 0) return result.is_end ? -1 : result.num_bytes;
  errno = result.error;
  PyErr_SetFromErrno(PyExc_OSError);
  throw nb::python_error();
}

int64_t send(SendRun& run, int fd, int64_t max_bytes) {
  SocketResult result;
  {
    nb::gil_scoped_release unlocked;
    result = run.send(fd, max_bytes);
  }
  return told(result);
}

int64_t receive(ReceiveRun& run, int fd, int64_t max_bytes, Bytes beyond) {
  SocketResult result;
  {
    nb::gil_scoped_release unlocked;
    result = run.receive(fd, max_bytes, {beyond.data(), beyond.size()});
  }
  return told(result);
}

void store(ReceiveRun& run, Array<const uint8_t, 1> bytes) {
  const int64_t num_bytes = int64_t(bytes.size());
  require(num_bytes <= run.num_bytes_left(), "more bytes than the ranges still take");
  run.store(reinterpret_cast<const char*>(bytes.data()), num_bytes);
}

void skip(ReceiveRun& run, int64_t num_bytes) {
  require(0 <= num_bytes && num_bytes <= run.num_bytes_left(), "num_bytes is not what is left");
  run.skip(num_bytes);
}

}  // namespace
}  // namespace baton

void bind_byte_mover(nanobind::module_& module) {
  using namespace baton;
  nb::class_<CopyRun>(module, "CopyRun")
      .def(nb::new_(&make_copy_run), "source"_a, "source_bytes"_a, "target"_a, "target_bytes"_a,
           "copies"_a)
      .def("advance", &CopyRun::advance, "max_bytes"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("stop", &CopyRun::stop)
      .def_prop_ro("is_finished", &CopyRun::is_finished)
      .def_prop_ro("num_bytes_moved", &CopyRun::num_bytes_moved);
  nb::class_<SendRun>(module, "SendRun")
      .def(
          "__init__",
          [](SendRun* self, uintptr_t address, int64_t num_bytes) {
            new (self) SendRun(reinterpret_cast<const char*>(address), num_bytes);
          },
          "address"_a, "num_bytes"_a)
      .def_prop_ro("num_bytes", &SendRun::num_bytes)
      .def(
          "add_text",
          [](SendRun& self, nb::bytes text) {
            require(text.size() > 0, "the text is empty");
            self.add_text(std::string(text.c_str(), text.size()));
          },
          "text"_a)
      .def("add_ranges", &add_ranges, "ranges"_a)
      .def("clear", &SendRun::clear)
      .def("send", &send, "fd"_a, "max_bytes"_a);
  nb::class_<ReceiveRun>(module, "ReceiveRun")
      .def(
          "__init__",
          [](ReceiveRun* self, uintptr_t address, int64_t num_bytes) {
            new (self) ReceiveRun(reinterpret_cast<char*>(address), num_bytes);
          },
          "address"_a, "num_bytes"_a)
      .def_prop_ro("num_bytes_left", &ReceiveRun::num_bytes_left)
      .def("expect", &expect, "ranges"_a)
      .def("expect_unwanted", &ReceiveRun::expect_unwanted, "num_bytes"_a)
      .def("receive", &receive, "fd"_a, "max_bytes"_a, "beyond"_a)
      .def("store", &store, "content"_a)
      .def("skip", &skip, "num_bytes"_a);
}
