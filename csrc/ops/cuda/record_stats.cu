// A block of threads reduces a block of the elements; they are merged in order, so results repeat
// bit for bit. Nothing is read back: the row is written by the device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <vector>

#include "ops/cuda/element.h"
#include "ops/cuda/stream.h"
#include "ops/record_stats.h"

namespace esper::cuda {
namespace {

constexpr int kThreads = 256;
constexpr double kMaxDouble = 1.7976931348623157e308;

// Joins the partial figures of all threads into shared[0], in a fixed order.
__device__ void join(Partial* shared) {
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      merge(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    __syncthreads();
  }
}

__device__ Partial of_element(double value) {
  Partial out{};
  const double magnitude = fabs(value);
  const bool finite = magnitude <= kMaxDouble;
  out.finite = finite ? 1.0 : 0.0;
  out.mean = finite ? value : 0.0;
  out.abs_max = finite ? magnitude : 0.0;
  out.zeros = value == 0.0 ? 1.0 : 0.0;
  out.non_finite = finite ? 0.0 : 1.0;
  return out;
}

template <typename T>
__global__ void block_kernel(const T* x, FlatBlocks blocks, Partial* partials) {
  __shared__ Partial shared[kThreads];
  const T* block = x + blocks.first(blockIdx.x);
  const std::int64_t size = blocks.size(blockIdx.x);
  Partial own{};
  for (std::int64_t i = threadIdx.x; i < size; i += kThreads) {
    merge(own, of_element(load(block + i)));
  }
  shared[threadIdx.x] = own;
  join(shared);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = shared[0];
  }
}

__global__ void row_kernel(const Partial* partials, std::int64_t count, double* out) {
  Partial total{};
  for (std::int64_t i = 0; i < count; ++i) {
    merge(total, partials[i]);
  }
  write_stats(total, static_cast<std::int64_t>(total.finite + total.non_finite), out, 1);
}

template <typename T>
void stats(const Tensor& x, double* out, cudaStream_t stream) {
  const FlatBlocks blocks{x.numel()};
  const std::array<std::int64_t, 1> size = {
      kMaxBlocks * static_cast<std::int64_t>(sizeof(Partial) / sizeof(double))};
  Tensor buffer = torch::stable::new_empty(x, {size.data(), 1}, ScalarType::Double);
  auto* partials = static_cast<Partial*>(buffer.data_ptr());
  if (blocks.count() > 0) {
    block_kernel<<<static_cast<unsigned>(blocks.count()), kThreads, 0, stream>>>(
        static_cast<const T*>(x.data_ptr()), blocks, partials);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  row_kernel<<<1, 1, 0, stream>>>(partials, blocks.count(), out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void record(const Tensor& x, double* row, cudaStream_t stream) {
  const Tensor dense = torch::stable::contiguous(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      stats<float>(dense, row, stream);
      break;
    case ScalarType::BFloat16:
      stats<__nv_bfloat16>(dense, row, stream);
      break;
    default:
      stats<double>(dense, row, stream);
  }
}

void record_stats(std::vector<Tensor> xs, Tensor table, std::vector<std::int64_t> rows) {
  check_record_stats(xs, table, rows);
  const OnDeviceOf device(table);
  auto* out = static_cast<double*>(table.data_ptr());
  for (std::size_t i = 0; i < xs.size(); ++i) {
    record(xs[i], out + rows[i] * kStatsRows, device.stream());
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CUDA, m) {
  m.impl("record_stats", TORCH_BOX(&record_stats));
}

}  // namespace esper::cuda
