// Inner loops of graft_blend and its backward; see isa/scalar.h for the rule of this folder.
#pragma once

#include "ops/cpu/isa/scalar.h"

namespace {

template <typename T>
void blend(const T* __restrict__ h,
           const T* __restrict__ delta,
           double alpha,
           T* __restrict__ out,
           std::int64_t n) {
  const auto a = static_cast<Compute<T>>(alpha);
  for (std::int64_t i = 0; i < n; ++i) {
    store(out + i, load(h + i) + a * load(delta + i));
  }
}

template <typename T>
double blend_backward(const T* __restrict__ grad,
                      const T* __restrict__ delta,
                      double alpha,
                      T* __restrict__ grad_delta,
                      std::int64_t n) {
  constexpr std::int64_t kLanes = 16;
  const auto a = static_cast<Compute<T>>(alpha);
  double sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const auto g = load(grad + i + lane);
      store(grad_delta + i + lane, a * g);
      sums[lane] += static_cast<double>(g) * static_cast<double>(load(delta + i + lane));
    }
  }
  for (std::int64_t lane = 0; i + lane < n; ++lane) {
    const auto g = load(grad + i + lane);
    store(grad_delta + i + lane, a * g);
    sums[lane] += static_cast<double>(g) * static_cast<double>(load(delta + i + lane));
  }
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::int64_t lane = 0; lane < half; ++lane) {
      sums[lane] += sums[lane + half];
    }
  }
  return sums[0];
}

}  // namespace
