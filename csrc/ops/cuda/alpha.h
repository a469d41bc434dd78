// Alpha, a tensor of one element, as kernels read and write it; and sums over a block.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "ops/common/check.h"
#include "ops/cuda/element.h"

namespace esper::cuda {

constexpr int kThreads = 256;

struct Alpha {
  void* data;
  ScalarType dtype;
};

__device__ inline double read(Alpha alpha) {
  switch (alpha.dtype) {
    case ScalarType::Float:
      return load(static_cast<const float*>(alpha.data));
    case ScalarType::BFloat16:
      return load(static_cast<const __nv_bfloat16*>(alpha.data));
    case ScalarType::Half:
      return load(static_cast<const __half*>(alpha.data));
    default:
      return load(static_cast<const double*>(alpha.data));
  }
}

__device__ inline void write(Alpha alpha, double value) {
  switch (alpha.dtype) {
    case ScalarType::Float:
      store(static_cast<float*>(alpha.data), static_cast<float>(value));
      break;
    case ScalarType::BFloat16:
      store(static_cast<__nv_bfloat16*>(alpha.data), static_cast<float>(value));
      break;
    case ScalarType::Half:
      store(static_cast<__half*>(alpha.data), static_cast<float>(value));
      break;
    default:
      store(static_cast<double*>(alpha.data), value);
  }
}

// The sum over a block of kThreads threads, valid in thread 0; pairwise, in a fixed order.
__device__ inline double block_sum(double value) {
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
  }
  return sums[0];
}

inline Alpha as_alpha(const Tensor& alpha) {
  return {alpha.data_ptr(), alpha.scalar_type()};
}

}  // namespace esper::cuda
