// The last records of a stream of equally long rows of figures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace esper::lattice {

// Invariants: the memory is allocated once; at most `capacity` records are kept, the oldest of
// which makes room for a new one; a push copies one record and moves nothing else. Steps rise.
class TelemetryRing {
 public:
  // capacity >= 1 records of width >= 1 figures. Throws std::invalid_argument.
  TelemetryRing(std::int64_t capacity, std::int64_t width);

  // Keeps a copy of the `width` figures at `record`. Throws std::invalid_argument where `step` is
  // not above the last one.
  void push(std::int64_t step, const double* record);

  std::vector<std::int64_t> steps() const;  // oldest first
  // The records kept, oldest first, into size() * width() elements at `out`.
  void copy_to(double* out) const;

  std::int64_t capacity() const { return static_cast<std::int64_t>(steps_.size()); }
  std::int64_t width() const { return static_cast<std::int64_t>(width_); }
  std::int64_t size() const { return static_cast<std::int64_t>(size_); }
  std::int64_t pushed() const { return pushed_; }

 private:
  std::size_t oldest() const { return size_ < steps_.size() ? 0 : next_; }

  std::size_t width_;
  std::vector<std::int64_t> steps_;
  std::vector<double> records_;
  std::size_t next_ = 0;  // where the next record goes
  std::size_t size_ = 0;
  std::int64_t pushed_ = 0;
};

}  // namespace esper::lattice
