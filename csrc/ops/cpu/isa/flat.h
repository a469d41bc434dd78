// Inner loop of record_stats; see isa/scalar.h for the rule of this folder.
//
// A block is summed in the compute type of its elements: it is short, and its sums are of
// differences from its first finite element. Blocks are joined in double.
#pragma once

#include "ops/cpu/isa/scalar.h"

namespace {

using esper::Partial;

constexpr std::int64_t kFlatLanes = 32;

inline float largest_finite(float) {
  return 3.4028234663852886e38F;
}

inline double largest_finite(double) {
  return 1.7976931348623157e308;
}

template <typename C>
struct FlatLanes {
  C sum[kFlatLanes];
  C square[kFlatLanes];
  C abs_max[kFlatLanes];
  C finite[kFlatLanes];
  C zeros[kFlatLanes];
};

template <typename C, typename T>
inline void add_flat(FlatLanes<C>& lanes, const T* x, std::int64_t width, C shift) {
  const C limit = largest_finite(C());
  for (std::int64_t i = 0; i < width; ++i) {
    const C value = static_cast<C>(load(x + i));
    const C magnitude = value < C(0) ? -value : value;
    const bool finite = magnitude <= limit;
    const C difference = finite ? value - shift : C(0);
    const C kept = finite ? magnitude : C(0);
    lanes.sum[i] += difference;
    lanes.square[i] += difference * difference;
    lanes.abs_max[i] = kept > lanes.abs_max[i] ? kept : lanes.abs_max[i];
    lanes.finite[i] += finite ? C(1) : C(0);
    lanes.zeros[i] += value == C(0) ? C(1) : C(0);
  }
}

template <typename C, typename T>
inline Partial flat_block(const T* x, std::int64_t n) {
  const C limit = largest_finite(C());
  C shift = C(0);
  for (std::int64_t i = 0; i < n; ++i) {
    const C value = static_cast<C>(load(x + i));
    if (value <= limit && value >= -limit) {
      shift = value;
      break;
    }
  }
  FlatLanes<C> lanes = {};
  std::int64_t i = 0;
  for (; i + kFlatLanes <= n; i += kFlatLanes) {
    add_flat(lanes, x + i, kFlatLanes, shift);
  }
  add_flat(lanes, x + i, n - i, shift);
  double sum = 0.0;
  double square = 0.0;
  Partial out{};
  for (std::int64_t lane = 0; lane < kFlatLanes; ++lane) {
    sum += static_cast<double>(lanes.sum[lane]);
    square += static_cast<double>(lanes.square[lane]);
    out.finite += static_cast<double>(lanes.finite[lane]);
    out.zeros += static_cast<double>(lanes.zeros[lane]);
    const double other = static_cast<double>(lanes.abs_max[lane]);
    out.abs_max = other > out.abs_max ? other : out.abs_max;
  }
  out.non_finite = static_cast<double>(n) - out.finite;
  if (out.finite > 0.0) {
    const double offset = sum / out.finite;
    out.mean = static_cast<double>(shift) + offset;
    const double m2 = square - sum * offset;
    out.m2 = m2 < 0.0 ? 0.0 : m2;
  }
  return out;
}

// `n` adjacent elements, at most kFlatBlock.
template <typename T>
void stats_flat(const T* x, std::int64_t n, Partial* out) {
  using C = decltype(load(x));
  *out = flat_block<C>(x, n);
  // Squares of large float32 values overflow where those of slot_stats do not.
  if (!(out->m2 <= 1.7976931348623157e308) ||
      !(__builtin_fabs(out->mean) <= 1.7976931348623157e308)) {
    *out = flat_block<double>(x, n);
  }
}

}  // namespace
