// Loads and stores of one element in its compute type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace esper::cuda {

__device__ inline float load(const float* p) {
  return *p;
}
__device__ inline double load(const double* p) {
  return *p;
}
__device__ inline float load(const __nv_bfloat16* p) {
  return __bfloat162float(*p);
}
__device__ inline float load(const __half* p) {
  return __half2float(*p);
}

__device__ inline void store(float* p, float value) {
  *p = value;
}
__device__ inline void store(double* p, double value) {
  *p = value;
}
__device__ inline void store(__nv_bfloat16* p, float value) {
  *p = __float2bfloat16_rn(value);
}
__device__ inline void store(__half* p, float value) {
  *p = __float2half_rn(value);
}

template <typename T>
using compute_t = decltype(load(static_cast<const T*>(nullptr)));

}  // namespace esper::cuda
