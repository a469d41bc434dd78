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
constexpr std::int64_t kRunLanes = 16;
constexpr std::int64_t kStrip = 16;
constexpr std::int64_t kRowGroup = 8;

template <typename C>
struct Numbers;
template <>
struct Numbers<float> {
  using Count = std::int32_t;
  static constexpr float kLargest = 3.4028234663852886e38F;
};
template <>
struct Numbers<double> {
  using Count = std::int64_t;
  static constexpr double kLargest = 1.7976931348623157e308;
};

// N independent accumulations; the loops over them become vector instructions. What needs no double
// is kept as narrow as an element: more lanes fit an instruction. A count has room for 2^31
// elements of its lane, so for a run of 2^35.
template <std::int64_t N, typename C>
struct Lanes {
  double shift[N];
  double sum[N];
  double square[N];
  C abs_max[N];
  typename Numbers<C>::Count finite[N];
  typename Numbers<C>::Count zeros[N];
};

template <std::int64_t N, typename C, typename T>
inline void add(Lanes<N, C>& lanes, const T* x, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    const C value = load(x + i);
    const C magnitude = value < C(0) ? -value : value;
    const bool finite = magnitude <= Numbers<C>::kLargest;
    const C kept = finite ? magnitude : C(0);
    const double difference = finite ? static_cast<double>(value) - lanes.shift[i] : 0.0;
    lanes.sum[i] += difference;
    lanes.square[i] += difference * difference;
    lanes.abs_max[i] = kept > lanes.abs_max[i] ? kept : lanes.abs_max[i];
    lanes.finite[i] += finite ? 1 : 0;
    lanes.zeros[i] += value == C(0) ? 1 : 0;
  }
}

template <std::int64_t N, typename C>
inline Partial finish(const Lanes<N, C>& lanes, std::int64_t i, std::int64_t elements) {
  Partial out{};
  out.finite = static_cast<double>(lanes.finite[i]);
  out.zeros = static_cast<double>(lanes.zeros[i]);
  out.non_finite = static_cast<double>(elements) - out.finite;
  out.abs_max = static_cast<double>(lanes.abs_max[i]);
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

// A few rows at a time run through all strips: every row is then a stream that the machine can
// read ahead, and a strip's accumulators serve several rows while they are in the nearest cache.
template <typename T>
void stats_rows(const T* __restrict__ x,
                std::int64_t rows,
                std::int64_t stride,
                std::int64_t width,
                Partial* __restrict__ out) {
  Lanes<kStrip, Compute<T>> strips[kFeatureTile / kStrip];
  const std::int64_t used = (width + kStrip - 1) / kStrip;
  for (std::int64_t s = 0; s < used; ++s) {
    strips[s] = {};
  }
  for (std::int64_t i = 0; i < width; ++i) {
    strips[i / kStrip].shift[i % kStrip] = first_finite(x + i, rows, stride);
  }
  for (std::int64_t group = 0; group < rows; group += kRowGroup) {
    const std::int64_t end = rows - group < kRowGroup ? rows : group + kRowGroup;
    for (std::int64_t s = 0; s < used; ++s) {
      const T* p = x + group * stride + s * kStrip;
      const std::int64_t left = width - s * kStrip;
      // A copy that lives in registers.
      Lanes<kStrip, Compute<T>> lanes = strips[s];
      for (std::int64_t row = group; row < end; ++row, p += stride) {
        if (left >= kStrip) {
          add(lanes, p, kStrip);
        } else {
          add(lanes, p, left);
        }
      }
      strips[s] = lanes;
    }
  }
  for (std::int64_t i = 0; i < width; ++i) {
    out[i] = finish(strips[i / kStrip], i % kStrip, rows);
  }
}

template <typename T>
void stats_runs(
    const T* x, std::int64_t count, std::int64_t stride, std::int64_t length, Partial* out) {
  double shift = 0.0;
  for (std::int64_t run = 0; run < count && shift == 0.0; ++run) {
    shift = first_finite(x + run * stride, length, 1);
  }
  Lanes<kRunLanes, Compute<T>> lanes = {};
  for (double& lane : lanes.shift) {
    lane = shift;
  }
  for (std::int64_t run = 0; run < count; ++run) {
    const T* p = x + run * stride;
    std::int64_t i = 0;
    for (; i + kRunLanes <= length; i += kRunLanes) {
      add(lanes, p + i, kRunLanes);
    }
    add(lanes, p + i, length - i);
  }
  // All lanes share one shift, so their sums add up; pairwise, in a fixed order.
  for (std::int64_t half = kRunLanes / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) {
      lanes.sum[i] += lanes.sum[i + half];
      lanes.square[i] += lanes.square[i + half];
      lanes.finite[i] += lanes.finite[i + half];
      lanes.zeros[i] += lanes.zeros[i + half];
      const auto other = lanes.abs_max[i + half];
      lanes.abs_max[i] = other > lanes.abs_max[i] ? other : lanes.abs_max[i];
    }
  }
  *out = finish(lanes, 0, count * length);
}

}  // namespace
