// Alpha is read on the device: a blend never waits for the host. Sums are accumulated in double
// in an order that depends on the number of elements only, so results repeat bit for bit.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "ops/common/layout.h"
#include "ops/cuda/alpha.h"
#include "ops/cuda/element.h"
#include "ops/cuda/stream.h"
#include "ops/graft_blend.h"

namespace esper::cuda {
namespace {

constexpr std::int64_t kElementsPerBlock = kThreads * 8;
constexpr std::int64_t kMaxBlocks = 4096;
constexpr std::int64_t kMaxSums = 1024;

template <typename T>
__global__ void blend_kernel(const T* h, const T* delta, Alpha alpha, T* out, std::int64_t n) {
  const auto a = static_cast<compute_t<T>>(read(alpha));
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < n; i += step) {
    if (a == 0) {
      out[i] = h[i];
    } else {
      store(out + i, load(h + i) + a * load(delta + i));
    }
  }
}

template <typename T>
__global__ void backward_kernel(
    const T* grad, const T* delta, Alpha alpha, T* grad_delta, double* sums, std::int64_t n) {
  const auto a = static_cast<compute_t<T>>(read(alpha));
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  double sum = 0.0;
  for (; i < n; i += step) {
    const auto g = load(grad + i);
    store(grad_delta + i, a * g);
    sum += static_cast<double>(g) * static_cast<double>(load(delta + i));
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
  }
}

__global__ void total_kernel(const double* sums, std::int64_t n, Alpha grad_alpha) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
    sum += sums[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    write(grad_alpha, sum);
  }
}

std::int64_t blocks_for(std::int64_t n, std::int64_t most) {
  return std::clamp<std::int64_t>((n + kElementsPerBlock - 1) / kElementsPerBlock, 1, most);
}

template <typename T>
void blend(
    const Tensor& h, const Tensor& delta, const Tensor& alpha, Tensor& out, cudaStream_t stream) {
  const std::int64_t n = h.numel();
  const auto blocks = static_cast<unsigned>(blocks_for(n, kMaxBlocks));
  blend_kernel<T><<<blocks, kThreads, 0, stream>>>(
      static_cast<const T*>(h.data_ptr()), static_cast<const T*>(delta.data_ptr()), as_alpha(alpha),
      static_cast<T*>(out.data_ptr()), n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void backward(const Tensor& grad,
              const Tensor& delta,
              const Tensor& alpha,
              Tensor& grad_delta,
              Tensor& grad_alpha,
              cudaStream_t stream) {
  const std::int64_t n = grad.numel();
  const std::array<std::int64_t, 1> blocks = {blocks_for(n, kMaxSums)};
  Tensor sums = torch::stable::new_empty(grad, {blocks.data(), 1}, ScalarType::Double);
  auto* sums_data = static_cast<double*>(sums.data_ptr());
  backward_kernel<T><<<static_cast<unsigned>(blocks[0]), kThreads, 0, stream>>>(
      static_cast<const T*>(grad.data_ptr()), static_cast<const T*>(delta.data_ptr()),
      as_alpha(alpha), static_cast<T*>(grad_delta.data_ptr()), sums_data, n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  total_kernel<<<1, kThreads, 0, stream>>>(sums_data, blocks[0], as_alpha(grad_alpha));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor graft_blend(const Tensor& h, const Tensor& delta, const Tensor& alpha) {
  check_graft_blend(h, delta, alpha);
  const OnDeviceOf device(h);
  Tensor out = torch::stable::empty_like(h);
  const Tensor dense_h = in_layout_of(h, out);
  const Tensor dense_delta = in_layout_of(delta, out);
  switch (h.scalar_type()) {
    case ScalarType::Float:
      blend<float>(dense_h, dense_delta, alpha, out, device.stream());
      break;
    case ScalarType::BFloat16:
      blend<__nv_bfloat16>(dense_h, dense_delta, alpha, out, device.stream());
      break;
    default:
      blend<double>(dense_h, dense_delta, alpha, out, device.stream());
  }
  return out;
}

std::tuple<Tensor, Tensor> graft_blend_backward(const Tensor& grad,
                                                const Tensor& delta,
                                                const Tensor& alpha) {
  check_graft_blend_backward(grad, delta, alpha);
  const OnDeviceOf device(delta);
  Tensor grad_delta = torch::stable::empty_like(delta);
  Tensor grad_alpha = torch::stable::empty_like(alpha);
  const Tensor dense_grad = in_layout_of(grad, grad_delta);
  const Tensor dense_delta = in_layout_of(delta, grad_delta);
  switch (delta.scalar_type()) {
    case ScalarType::Float:
      backward<float>(dense_grad, dense_delta, alpha, grad_delta, grad_alpha, device.stream());
      break;
    case ScalarType::BFloat16:
      backward<__nv_bfloat16>(dense_grad, dense_delta, alpha, grad_delta, grad_alpha,
                              device.stream());
      break;
    default:
      backward<double>(dense_grad, dense_delta, alpha, grad_delta, grad_alpha, device.stream());
  }
  return {grad_delta, grad_alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CUDA, m) {
  m.impl("graft_blend", TORCH_BOX(&graft_blend));
  m.impl("graft_blend_backward", TORCH_BOX(&graft_blend_backward));
}

}  // namespace esper::cuda
