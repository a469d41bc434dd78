// A block of threads reduces a chunk of the elements; the chunks are merged in order, so results
// repeat bit for bit. Nothing is read back: the row is written by the device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <vector>

#include "ops/common/merge.h"
#include "ops/cuda/element.h"
#include "ops/cuda/stream.h"
#include "ops/record_stats.h"

namespace esper::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kChunk = 16 * kThreads;
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
__global__ void chunk_kernel(const T* x, std::int64_t n, std::int64_t chunks, Partial* partials) {
  __shared__ Partial shared[kThreads];
  for (std::int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const std::int64_t end = (chunk + 1) * kChunk < n ? (chunk + 1) * kChunk : n;
    Partial own{};
    for (std::int64_t i = chunk * kChunk + threadIdx.x; i < end; i += kThreads) {
      merge(own, of_element(load(x + i)));
    }
    shared[threadIdx.x] = own;
    join(shared);
    if (threadIdx.x == 0) {
      partials[chunk] = shared[0];
    }
    __syncthreads();
  }
}

__global__ void row_kernel(const Partial* partials,
                           std::int64_t chunks,
                           std::int64_t n,
                           double* out) {
  __shared__ Partial shared[kThreads];
  Partial own{};
  for (std::int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    merge(own, partials[chunk]);
  }
  shared[threadIdx.x] = own;
  join(shared);
  if (threadIdx.x == 0) {
    write_stats(shared[0], n, out, 1);
  }
}

template <typename T>
void stats(const Tensor& x, double* out, cudaStream_t stream) {
  const std::int64_t n = x.numel();
  const std::int64_t chunks = (n + kChunk - 1) / kChunk;
  const std::array<std::int64_t, 1> size = {
      chunks * static_cast<std::int64_t>(sizeof(Partial) / sizeof(double))};
  Tensor buffer = torch::stable::new_empty(x, {size.data(), 1}, ScalarType::Double);
  auto* partials = static_cast<Partial*>(buffer.data_ptr());
  if (chunks > 0) {
    const auto blocks = static_cast<unsigned>(chunks < 65535 ? chunks : 65535);
    chunk_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(x.data_ptr()), n, chunks,
                                                  partials);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  row_kernel<<<1, kThreads, 0, stream>>>(partials, chunks, n, out);
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
