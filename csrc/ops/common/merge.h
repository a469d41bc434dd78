// Joins partial figures; used on the host and on the device.
#pragma once

#include <cstdint>

#include "ops/common/partial.h"
#include "ops/slot_stats.h"

#ifdef __CUDACC__
#define ESPER_HOST_DEVICE __host__ __device__
#else
#define ESPER_HOST_DEVICE
#endif

namespace esper {

// Figures of two disjoint sets from those of each, after Chan, Golub and LeVeque (1979).
ESPER_HOST_DEVICE inline void merge(Partial& into, const Partial& other) {
  const double finite = into.finite + other.finite;
  if (into.finite == 0.0) {
    into.mean = other.mean;
    into.m2 = other.m2;
  } else if (other.finite > 0.0) {
    const double difference = other.mean - into.mean;
    into.mean += difference * (other.finite / finite);
    into.m2 += other.m2 + difference * difference * (into.finite * other.finite / finite);
  }
  into.finite = finite;
  into.abs_max = other.abs_max > into.abs_max ? other.abs_max : into.abs_max;
  into.zeros += other.zeros;
  into.non_finite += other.non_finite;
}

// Writes one column of the result; rows lie `features` elements apart.
ESPER_HOST_DEVICE inline void write_stats(const Partial& total,
                                          std::int64_t elements,
                                          double* out,
                                          std::int64_t features) {
  const double nan = __builtin_nan("");
  const bool any = total.finite > 0.0;
  out[kMean * features] = any ? total.mean : nan;
  out[kVariance * features] = any ? total.m2 / total.finite : nan;
  out[kAbsMax * features] = any ? total.abs_max : nan;
  out[kZeroFraction * features] = elements > 0 ? total.zeros / static_cast<double>(elements) : nan;
  out[kNonFinite * features] = total.non_finite;
}

}  // namespace esper
