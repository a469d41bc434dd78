// Inner loops of slot_stats; see isa/scalar.h for the rule of this folder.
//
// Sums are taken of differences from the first finite element, so that a large mean does not
// drown a small variance in one pass.
#pragma once

#include "ops/cpu/isa/scalar.h"

namespace {

using esper::Partial;
using esper::cpu::kFeatureTile;

constexpr double kMaxDouble = 1.7976931348623157e308;
constexpr std::int64_t kLanes = kFeatureTile;

// kLanes independent accumulations; the loops over lanes become vector instructions.
struct Lanes {
  double shift[kLanes] = {};
  double sum[kLanes] = {};
  double square[kLanes] = {};
  double abs_max[kLanes] = {};
  double finite[kLanes] = {};
  double zeros[kLanes] = {};
};

template <typename T>
inline void add(Lanes& lanes, const T* x, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    const double value = load(x + i);
    const double magnitude = __builtin_fabs(value);
    const bool finite = magnitude <= kMaxDouble;
    const double difference = finite ? value - lanes.shift[i] : 0.0;
    const double kept = finite ? magnitude : 0.0;
    lanes.sum[i] += difference;
    lanes.square[i] += difference * difference;
    lanes.abs_max[i] = kept > lanes.abs_max[i] ? kept : lanes.abs_max[i];
    lanes.finite[i] += finite ? 1.0 : 0.0;
    lanes.zeros[i] += value == 0.0 ? 1.0 : 0.0;
  }
}

inline Partial finish(const Lanes& lanes, std::int64_t i, std::int64_t elements) {
  Partial out{};
  out.finite = lanes.finite[i];
  out.zeros = lanes.zeros[i];
  out.non_finite = static_cast<double>(elements) - lanes.finite[i];
  out.abs_max = lanes.abs_max[i];
  if (out.finite > 0.0) {
    const double offset = lanes.sum[i] / out.finite;
    out.mean = lanes.shift[i] + offset;
    const double m2 = lanes.square[i] - lanes.sum[i] * offset;
    out.m2 = m2 < 0.0 ? 0.0 : m2;
  }
  return out;
}

// The first finite one of `count` elements that lie `stride` apart, or 0.
template <typename T>
inline double first_finite(const T* x, std::int64_t count, std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i) {
    const double value = load(x + i * stride);
    if (__builtin_fabs(value) <= kMaxDouble) {
      return value;
    }
  }
  return 0.0;
}

template <typename T>
void stats_rows(
    const T* x, std::int64_t rows, std::int64_t stride, std::int64_t width, Partial* out) {
  Lanes lanes;
  for (std::int64_t i = 0; i < width; ++i) {
    lanes.shift[i] = first_finite(x + i, rows, stride);
  }
  if (width == kLanes) {
    for (std::int64_t row = 0; row < rows; ++row) {
      add(lanes, x + row * stride, kLanes);
    }
  } else {
    for (std::int64_t row = 0; row < rows; ++row) {
      add(lanes, x + row * stride, width);
    }
  }
  for (std::int64_t i = 0; i < width; ++i) {
    out[i] = finish(lanes, i, rows);
  }
}

template <typename T>
void stats_runs(
    const T* x, std::int64_t count, std::int64_t stride, std::int64_t length, Partial* out) {
  double shift = 0.0;
  for (std::int64_t run = 0; run < count && shift == 0.0; ++run) {
    shift = first_finite(x + run * stride, length, 1);
  }
  Lanes lanes;
  for (double& lane : lanes.shift) {
    lane = shift;
  }
  for (std::int64_t run = 0; run < count; ++run) {
    const T* p = x + run * stride;
    std::int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
      add(lanes, p + i, kLanes);
    }
    add(lanes, p + i, length - i);
  }
  // All lanes share one shift, so their sums add up; pairwise, in a fixed order.
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) {
      lanes.sum[i] += lanes.sum[i + half];
      lanes.square[i] += lanes.square[i + half];
      lanes.finite[i] += lanes.finite[i + half];
      lanes.zeros[i] += lanes.zeros[i + half];
      const double other = lanes.abs_max[i + half];
      lanes.abs_max[i] = other > lanes.abs_max[i] ? other : lanes.abs_max[i];
    }
  }
  *out = finish(lanes, 0, count * length);
}

}  // namespace
