#include "lattice/telemetry_ring.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace esper::lattice {
namespace {

std::size_t positive(const char* name, std::int64_t value) {
  if (value < 1) {
    throw std::invalid_argument(std::string("TelemetryRing: got ") + name + " " +
                                std::to_string(value) + ", wanted at least 1");
  }
  return static_cast<std::size_t>(value);
}

std::size_t product(std::size_t capacity, std::size_t width) {
  if (width > std::numeric_limits<std::size_t>::max() / sizeof(double) / capacity) {
    throw std::invalid_argument("TelemetryRing: got " + std::to_string(capacity) + " records of " +
                                std::to_string(width) + " figures, wanted what fits in memory");
  }
  return capacity * width;
}

}  // namespace

TelemetryRing::TelemetryRing(std::int64_t capacity, std::int64_t width)
    : width_(positive("width", width)),
      steps_(positive("capacity", capacity)),
      records_(product(steps_.size(), width_)) {}

void TelemetryRing::push(std::int64_t step, const double* record) {
  if (size_ > 0) {
    const std::int64_t last = steps_[(next_ + steps_.size() - 1) % steps_.size()];
    if (step <= last) {
      throw std::invalid_argument("TelemetryRing: got step " + std::to_string(step) +
                                  ", wanted one above the last, " + std::to_string(last));
    }
  }
  steps_[next_] = step;
  std::copy_n(record, width_, records_.data() + next_ * width_);
  next_ = next_ + 1 == steps_.size() ? 0 : next_ + 1;
  size_ = std::min(size_ + 1, steps_.size());
  ++pushed_;
}

std::vector<std::int64_t> TelemetryRing::steps() const {
  std::vector<std::int64_t> out(size_);
  for (std::size_t i = 0; i < size_; ++i) {
    out[i] = steps_[(oldest() + i) % steps_.size()];
  }
  return out;
}

void TelemetryRing::copy_to(double* out) const {
  for (std::size_t i = 0; i < size_; ++i) {
    const std::size_t at = (oldest() + i) % steps_.size();
    out = std::copy_n(records_.data() + at * width_, width_, out);
  }
}

}  // namespace esper::lattice
