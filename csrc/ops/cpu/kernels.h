// The inner loops, as tables of functions that are compiled once per instruction set.
//
// Invariant: the loops fix the order of additions (by lane and by block, never by vector width or
// thread count). Elementwise loops and statistics are compiled without contraction into fused
// multiply-adds, so every table computes the same bits; matrix products are contracted where
// the instruction set can.
#pragma once

#include <cstdint>

#include "ops/common/partial.h"

namespace esper::cpu {

// Raw bits of a bfloat16, so that this header needs no torch header.
struct bfloat16 {
  std::uint16_t bits;
};

// What an element is computed in.
template <typename T>
struct ComputeOf {
  using Type = T;
};
template <>
struct ComputeOf<bfloat16> {
  using Type = float;
};
template <typename T>
using Compute = typename ComputeOf<T>::Type;

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
  // `n` adjacent elements (at most kFlatBlock) as one feature, summed in their compute type.
  void (*flat)(const T* x, std::int64_t n, Partial* out);
};

// Rows of one candidate of graft_project. Rows of hidden lie `stride` elements apart, other rows
// are adjacent. `up` [rank, padded] and `bias` [padded] are packed with zeros beyond the width;
// a pointer to a bias is null where there is none.
template <typename T>
struct Projection {
  const T* hidden;
  const Compute<T>* up;
  const Compute<T>* bias;
  std::int64_t rank;
  std::int64_t stride;
  std::int64_t padded;
  std::int64_t width;
  std::int64_t rows;
  Compute<T> alpha;
};

template <typename T>
struct ProjectKernels {
  // out = h + alpha * (hidden @ up + bias), alpha not 0.
  void (*project)(const Projection<T>& p, const T* h, T* out);
  // to_hidden (laid out as hidden) = alpha * grad @ up^T; hidden^T @ grad is added to to_up and
  // the sum of grad to to_bias. Returns the sum of hidden * (grad @ up^T).
  double (*backward)(
      const Projection<T>& p, const T* grad, T* to_hidden, Compute<T>* to_up, Compute<T>* to_bias);
};

// The kernels of every operator for one element type.
template <typename T>
struct Kernels {
  BlendKernels<T> blend;
  StatsKernels<T> stats;
};

// Matrix products, compiled apart from the rest.
struct ProductTable {
  ProjectKernels<float> f32;
  ProjectKernels<double> f64;
  ProjectKernels<bfloat16> bf16;
};

struct KernelTable {
  const char* isa;
  const ProductTable* products;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<bfloat16> bf16;
};

// The best table that this machine can run, or the one that ESPER_CPU_ISA (baseline, avx2,
// avx512) asks for. Chosen once.
const KernelTable& kernels();

template <typename T>
const Kernels<T>& kernels_for();
template <>
inline const Kernels<float>& kernels_for<float>() {
  return kernels().f32;
}
template <>
inline const Kernels<double>& kernels_for<double>() {
  return kernels().f64;
}
template <>
inline const Kernels<bfloat16>& kernels_for<bfloat16>() {
  return kernels().bf16;
}

template <typename T>
const ProjectKernels<T>& project_kernels();
template <>
inline const ProjectKernels<float>& project_kernels<float>() {
  return kernels().products->f32;
}
template <>
inline const ProjectKernels<double>& project_kernels<double>() {
  return kernels().products->f64;
}
template <>
inline const ProjectKernels<bfloat16>& project_kernels<bfloat16>() {
  return kernels().products->bf16;
}

}  // namespace esper::cpu
