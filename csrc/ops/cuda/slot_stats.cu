// A block of threads reduces a chunk of the elements of one feature (or of 32 adjacent ones);
// the chunks of a feature are merged in order, so results repeat bit for bit.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "ops/common/merge.h"
#include "ops/cuda/element.h"
#include "ops/cuda/stream.h"
#include "ops/slot_stats.h"

namespace esper::cuda {
namespace {

constexpr std::int64_t kChunk = 4096;
constexpr double kMaxDouble = 1.7976931348623157e308;
constexpr int kMergeThreads = 128;

// Reduces every lanes-th of `elements` elements of a feature. Element e is the (e % inner)-th of
// run e / inner, and runs lie `stride` apart.
template <typename T>
__device__ Partial reduce(const T* x,
                          std::int64_t first,
                          std::int64_t lanes,
                          std::int64_t elements,
                          std::int64_t inner,
                          std::int64_t stride) {
  Partial out{};
  double shift = 0.0;
  double sum = 0.0;
  double square = 0.0;
  for (std::int64_t e = first; e < elements; e += lanes) {
    const double value = load(inner == 1 ? x + e * stride : x + (e / inner) * stride + e % inner);
    const double magnitude = fabs(value);
    out.zeros += value == 0.0 ? 1.0 : 0.0;
    if (!(magnitude <= kMaxDouble)) {
      out.non_finite += 1.0;
      continue;
    }
    // Differences from a first element: a large mean must not drown a small variance.
    if (out.finite == 0.0) {
      shift = value;
    }
    const double difference = value - shift;
    sum += difference;
    square += difference * difference;
    out.finite += 1.0;
    out.abs_max = magnitude > out.abs_max ? magnitude : out.abs_max;
  }
  if (out.finite > 0.0) {
    const double offset = sum / out.finite;
    const double m2 = square - sum * offset;
    out.mean = shift + offset;
    out.m2 = m2 < 0.0 ? 0.0 : m2;
  }
  return out;
}

// Threads: Width adjacent features times Lanes. Grid: feature tiles times chunks.
template <typename T, int Width, int Lanes>
__global__ void chunk_kernel(const T* x, StatsShape shape, std::int64_t runs, Partial* partials) {
  __shared__ Partial shared[Width * Lanes];
  const int lane = threadIdx.x / Width;
  const int column = threadIdx.x % Width;
  const std::int64_t feature = static_cast<std::int64_t>(blockIdx.x) * Width + column;
  const std::int64_t stride = shape.features * shape.inner;
  for (std::int64_t chunk = blockIdx.y; chunk * runs < shape.outer; chunk += gridDim.y) {
    const std::int64_t run = chunk * runs;
    const std::int64_t left = shape.outer - run;
    const std::int64_t elements = (left < runs ? left : runs) * shape.inner;
    if (feature < shape.features) {
      const T* start = x + run * stride + feature * shape.inner;
      shared[threadIdx.x] = reduce(start, lane, Lanes, elements, shape.inner, stride);
    }
    __syncthreads();
    for (int half = Lanes / 2; half > 0; half /= 2) {
      if (lane < half && feature < shape.features) {
        merge(shared[threadIdx.x], shared[threadIdx.x + half * Width]);
      }
      __syncthreads();
    }
    if (lane == 0 && feature < shape.features) {
      partials[chunk * shape.features + feature] = shared[threadIdx.x];
    }
    __syncthreads();
  }
}

__global__ void merge_kernel(const Partial* partials,
                             std::int64_t chunks,
                             StatsShape shape,
                             double* out) {
  const std::int64_t feature = static_cast<std::int64_t>(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (feature >= shape.features) {
    return;
  }
  Partial total{};
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    merge(total, partials[chunk * shape.features + feature]);
  }
  write_stats(total, shape.outer * shape.inner, out + feature, shape.features);
}

unsigned grid(std::int64_t items, std::int64_t width) {
  return static_cast<unsigned>((items + width - 1) / width);
}

template <typename T>
void stats(const Tensor& x, const StatsShape& shape, Tensor& out, cudaStream_t stream) {
  const std::int64_t runs =
      std::max<std::int64_t>(1, kChunk / std::max<std::int64_t>(1, shape.inner));
  const bool any = shape.outer * shape.inner > 0;
  const std::int64_t chunks = any ? (shape.outer + runs - 1) / runs : 0;
  const std::array<std::int64_t, 1> size = {
      chunks * shape.features * static_cast<std::int64_t>(sizeof(Partial) / sizeof(double))};
  Tensor buffer = torch::stable::new_empty(x, {size.data(), 1}, ScalarType::Double);
  auto* partials = static_cast<Partial*>(buffer.data_ptr());
  const auto* data = static_cast<const T*>(x.data_ptr());
  if (chunks > 0) {
    const auto rows = static_cast<unsigned>(std::min<std::int64_t>(chunks, 65535));
    if (shape.inner == 1) {
      const dim3 blocks(grid(shape.features, 32), rows);
      chunk_kernel<T, 32, 8><<<blocks, 256, 0, stream>>>(data, shape, runs, partials);
    } else {
      const dim3 blocks(grid(shape.features, 1), rows);
      chunk_kernel<T, 1, 256><<<blocks, 256, 0, stream>>>(data, shape, runs, partials);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  merge_kernel<<<grid(shape.features, kMergeThreads), kMergeThreads, 0, stream>>>(
      partials, chunks, shape, static_cast<double*>(out.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor slot_stats(const Tensor& x, std::int64_t axis) {
  const StatsShape shape = check_slot_stats(x, axis);
  const OnDeviceOf device(x);
  const Tensor dense = torch::stable::contiguous(x);
  const std::array<std::int64_t, 2> size = {kStatsRows, shape.features};
  Tensor out = torch::stable::new_empty(x, {size.data(), 2}, ScalarType::Double);
  if (shape.features == 0) {
    return out;
  }
  switch (x.scalar_type()) {
    case ScalarType::Float:
      stats<float>(dense, shape, out, device.stream());
      break;
    case ScalarType::BFloat16:
      stats<__nv_bfloat16>(dense, shape, out, device.stream());
      break;
    default:
      stats<double>(dense, shape, out, device.stream());
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CUDA, m) {
  m.impl("slot_stats", TORCH_BOX(&slot_stats));
}

}  // namespace esper::cuda
