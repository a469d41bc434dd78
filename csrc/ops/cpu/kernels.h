// The inner loops, as tables of functions that are compiled once per instruction set.
//
// Invariant: every table computes the same bits. The loops fix the order of additions (by lane
// and by block, never by vector width or thread count) and are compiled without contraction
// into fused multiply-adds.
#pragma once

#include <cstdint>

#include "ops/common/partial.h"

namespace esper::cpu {

// Raw bits of a bfloat16, so that this header needs no torch header.
struct bfloat16 {
  std::uint16_t bits;
};

template <typename T>
struct BlendKernels {
  // out = h + alpha * delta, rounded once to T; alpha is not 0.
  void (*blend)(const T* h, const T* delta, double alpha, T* out, std::int64_t n);
  // grad_delta = alpha * grad; returns sum(grad * delta), accumulated in double.
  double (*backward)(const T* grad, const T* delta, double alpha, T* grad_delta, std::int64_t n);
};

// Most adjacent features that are reduced together; their accumulators fit the second-level cache.
inline constexpr std::int64_t kFeatureTile = 1024;

template <typename T>
struct StatsKernels {
  // `rows` rows of `width` adjacent features (at most kFeatureTile), `stride` elements apart.
  void (*rows)(
      const T* x, std::int64_t rows, std::int64_t stride, std::int64_t width, Partial* out);
  // One feature: `count` runs of `length` adjacent elements, `stride` elements apart.
  void (*runs)(
      const T* x, std::int64_t count, std::int64_t stride, std::int64_t length, Partial* out);
};

struct KernelTable {
  const char* isa;
  BlendKernels<float> blend_f32;
  BlendKernels<double> blend_f64;
  BlendKernels<bfloat16> blend_bf16;
  StatsKernels<float> stats_f32;
  StatsKernels<double> stats_f64;
  StatsKernels<bfloat16> stats_bf16;
};

// The best table that this machine can run, or the one that ESPER_CPU_ISA (baseline, avx2,
// avx512) asks for. Chosen once.
const KernelTable& kernels();

template <typename T>
const BlendKernels<T>& blend_kernels();
template <>
inline const BlendKernels<float>& blend_kernels<float>() {
  return kernels().blend_f32;
}
template <>
inline const BlendKernels<double>& blend_kernels<double>() {
  return kernels().blend_f64;
}
template <>
inline const BlendKernels<bfloat16>& blend_kernels<bfloat16>() {
  return kernels().blend_bf16;
}

template <typename T>
const StatsKernels<T>& stats_kernels();
template <>
inline const StatsKernels<float>& stats_kernels<float>() {
  return kernels().stats_f32;
}
template <>
inline const StatsKernels<double>& stats_kernels<double>() {
  return kernels().stats_f64;
}
template <>
inline const StatsKernels<bfloat16>& stats_kernels<bfloat16>() {
  return kernels().stats_bf16;
}

}  // namespace esper::cpu
