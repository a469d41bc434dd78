// Sums are taken in an order that depends on the shape only, so results repeat bit for bit; alpha
// is read on the device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "ops/cuda/alpha.h"
#include "ops/cuda/element.h"
#include "ops/cuda/stream.h"
#include "ops/graft_project.h"

namespace esper::cuda {
namespace {

// Rows that one thread of the forward kernel serves with each weight that it reads.
constexpr int kTile = 8;
// Hidden units that one thread of a backward kernel serves with each gradient that it reads.
constexpr int kUnits = 8;
// As on the CPU: the gradient to up is summed over segments of rows.
constexpr std::int64_t kRows = 1024;
constexpr std::int64_t kSegments = 64;
// Most blocks in the second and third dimension of a grid, and in the first.
constexpr std::int64_t kMaxGrid = 65535;
constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1;

// Where things are. up is [groups, width, rank] by its strides, hidden [rows, groups, rank] and
// everything else contiguous; bias is null where there is none.
template <typename T>
struct Operands {
  std::int64_t groups;
  std::int64_t rows;
  std::int64_t width;
  std::int64_t rank;
  const T* hidden;
  const T* up;
  const T* bias;
  Alpha alpha;
  std::int64_t group_stride;
  std::int64_t column_stride;
  std::int64_t unit_stride;

  __device__ compute_t<T> weight(std::int64_t group, std::int64_t i, std::int64_t r) const {
    return load(up + group * group_stride + i * column_stride + r * unit_stride);
  }
  __device__ compute_t<T> unit(std::int64_t row, std::int64_t group, std::int64_t r) const {
    return load(hidden + (row * groups + group) * rank + r);
  }
};

// Grid: tiles of rows, tiles of columns, groups.
template <typename T>
__global__ void project_kernel(Operands<T> p, const T* h, T* out) {
  using C = compute_t<T>;
  const C alpha = static_cast<C>(read(p.alpha));
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int count = static_cast<int>(p.rows - first < kTile ? p.rows - first : kTile);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.y) * kThreads;
  for (std::int64_t group = blockIdx.z; group < p.groups; group += gridDim.z) {
    std::int64_t i = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
    for (; i < p.width; i += step) {
      C sum[kTile] = {};
      if (p.bias != nullptr) {
        for (C& value : sum) {
          value = load(p.bias + group * p.width + i);
        }
      }
      for (std::int64_t r = 0; alpha != 0 && r < p.rank; ++r) {
        const C weight = p.weight(group, i, r);
        for (int j = 0; j < count; ++j) {
          sum[j] += p.unit(first + j, group, r) * weight;
        }
      }
      for (int j = 0; j < count; ++j) {
        const T* from = h + (first + j) * p.width + i;
        T* to = out + (group * p.rows + first + j) * p.width + i;
        if (alpha == 0) {
          *to = *from;
        } else {
          store(to, load(from) + alpha * sum[j]);
        }
      }
    }
  }
}

// A block takes a row of a group, and the next one that no other block takes: its gradient to
// hidden, and its part of that to alpha.
template <typename T>
__global__ void to_hidden_kernel(Operands<T> p, const T* grad, T* to_hidden, double* to_alpha) {
  using C = compute_t<T>;
  const C alpha = static_cast<C>(read(p.alpha));
  const std::int64_t all = p.groups * p.rows;
  for (std::int64_t place = blockIdx.x; place < all; place += gridDim.x) {
    const std::int64_t group = place / p.rows;
    const std::int64_t row = place % p.rows;
    const T* from = grad + place * p.width;
    double total = 0.0;
    for (std::int64_t r = 0; r < p.rank; r += kUnits) {
      const int units = static_cast<int>(p.rank - r < kUnits ? p.rank - r : kUnits);
      C sum[kUnits] = {};
      for (std::int64_t i = threadIdx.x; i < p.width; i += kThreads) {
        const C g = load(from + i);
        for (int j = 0; j < units; ++j) {
          sum[j] += g * p.weight(group, i, r + j);
        }
      }
      for (int j = 0; j < units; ++j) {
        // The next sum uses the same shared memory.
        __syncthreads();
        const double value = block_sum(static_cast<double>(sum[j]));
        if (threadIdx.x == 0) {
          store(to_hidden + (row * p.groups + group) * p.rank + r + j,
                static_cast<C>(alpha * static_cast<C>(value)));
          total += value * static_cast<double>(p.unit(row, group, r + j));
        }
      }
    }
    if (threadIdx.x == 0) {
      to_alpha[place] = total;
    }
  }
}

// Sums of hidden * grad over the rows of a segment, [segments, groups, rank + 1, width]; the last
// row of a group is the sum of grad. Grid: tiles of columns, groups, segments.
template <typename T>
__global__ void to_up_kernel(Operands<T> p,
                             const T* grad,
                             std::int64_t length,
                             compute_t<T>* sums) {
  using C = compute_t<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.width) {
    return;
  }
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.z) * length;
  const std::int64_t last = p.rows - first < length ? p.rows : first + length;
  for (std::int64_t group = blockIdx.y; group < p.groups; group += gridDim.y) {
    const T* from = grad + group * p.rows * p.width + i;
    C* to = sums + (blockIdx.z * p.groups + group) * (p.rank + 1) * p.width + i;
    for (std::int64_t r = 0; r <= p.rank; r += kUnits) {
      const int units = static_cast<int>(p.rank + 1 - r < kUnits ? p.rank + 1 - r : kUnits);
      C sum[kUnits] = {};
      for (std::int64_t row = first; row < last; ++row) {
        const C g = load(from + row * p.width);
        for (int j = 0; j < units; ++j) {
          sum[j] += r + j < p.rank ? p.unit(row, group, r + j) * g : g;
        }
      }
      for (int j = 0; j < units; ++j) {
        to[(r + j) * p.width] = sum[j];
      }
    }
  }
}

// Joins the segments. Grid: tiles of columns, groups. to_alpha gains one number for each column.
template <typename T>
__global__ void finish_kernel(Operands<T> p,
                              const compute_t<T>* sums,
                              std::int64_t segments,
                              T* to_up,
                              std::int64_t group_stride,
                              std::int64_t column_stride,
                              std::int64_t unit_stride,
                              T* to_bias,
                              double* to_alpha) {
  using C = compute_t<T>;
  const C alpha = static_cast<C>(read(p.alpha));
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.width) {
    return;
  }
  for (std::int64_t group = blockIdx.y; group < p.groups; group += gridDim.y) {
    double through_bias = 0.0;
    for (std::int64_t r = 0; r <= p.rank; ++r) {
      C sum = 0;
      for (std::int64_t s = 0; s < segments; ++s) {
        sum += sums[((s * p.groups + group) * (p.rank + 1) + r) * p.width + i];
      }
      if (r < p.rank) {
        store(to_up + group * group_stride + i * column_stride + r * unit_stride,
              static_cast<C>(alpha * sum));
      } else if (p.bias != nullptr) {
        store(to_bias + group * p.width + i, static_cast<C>(alpha * sum));
        through_bias =
            static_cast<double>(sum) * static_cast<double>(load(p.bias + group * p.width + i));
      }
    }
    to_alpha[group * p.width + i] = through_bias;
  }
}

__global__ void total_kernel(const double* sums, std::int64_t n, Alpha to_alpha) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
    sum += sums[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    write(to_alpha, sum);
  }
}

unsigned tiles(std::int64_t items, std::int64_t width) {
  return static_cast<unsigned>((items + width - 1) / width);
}

unsigned capped(std::int64_t blocks) {
  return static_cast<unsigned>(std::min(blocks, kMaxGrid));
}

Tensor empty(const std::vector<std::int64_t>& shape,
             const Tensor& like,
             std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, dtype);
}

// hidden and bias are contiguous.
template <typename T>
Operands<T> operands(const ProjectShape& shape,
                     const Tensor& hidden,
                     const Tensor& up,
                     const std::optional<Tensor>& bias,
                     const Tensor& alpha) {
  return {shape.groups,
          shape.rows,
          shape.width,
          shape.rank,
          static_cast<const T*>(hidden.data_ptr()),
          static_cast<const T*>(up.data_ptr()),
          bias.has_value() ? static_cast<const T*>(bias->data_ptr()) : nullptr,
          as_alpha(alpha),
          shape.stacked ? up.stride(0) : 0,
          up.stride(up.dim() - 2),
          up.stride(up.dim() - 1)};
}

template <typename T>
void project(const Operands<T>& p, const Tensor& h, Tensor& out, cudaStream_t stream) {
  if (p.groups * p.rows * p.width == 0) {
    return;
  }
  const dim3 grid(tiles(p.rows, kTile), capped(tiles(p.width, kThreads)), capped(p.groups));
  project_kernel<T><<<grid, kThreads, 0, stream>>>(p, static_cast<const T*>(h.data_ptr()),
                                                   static_cast<T*>(out.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void backward(const Operands<T>& p,
              const Tensor& grad,
              Tensor& to_hidden,
              Tensor& to_up,
              Tensor& to_bias,
              Tensor& to_alpha,
              cudaStream_t stream) {
  const std::int64_t length = std::max(kRows, (p.rows + kSegments - 1) / kSegments);
  const std::int64_t segments = std::max<std::int64_t>(1, (p.rows + length - 1) / length);
  const bool single = sizeof(compute_t<T>) == sizeof(float);
  const Tensor sums = empty({segments, p.groups, p.rank + 1, p.width}, grad,
                            single ? ScalarType::Float : ScalarType::Double);
  const std::int64_t rows = p.groups * p.rows;
  const std::int64_t parts = rows + p.groups * p.width;
  const Tensor to_sum = empty({parts}, grad, ScalarType::Double);
  auto* sums_data = static_cast<compute_t<T>*>(sums.data_ptr());
  auto* parts_data = static_cast<double*>(to_sum.data_ptr());
  const auto* from = static_cast<const T*>(grad.data_ptr());
  if (rows > 0) {
    const auto blocks = static_cast<unsigned>(std::min(rows, kMaxBlocks));
    to_hidden_kernel<T><<<blocks, kThreads, 0, stream>>>(
        p, from, static_cast<T*>(to_hidden.data_ptr()), parts_data);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (p.groups * p.width > 0) {
    const dim3 grid(tiles(p.width, kThreads), capped(p.groups), static_cast<unsigned>(segments));
    to_up_kernel<T><<<grid, kThreads, 0, stream>>>(p, from, length, sums_data);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const dim3 columns(tiles(p.width, kThreads), capped(p.groups));
    finish_kernel<T><<<columns, kThreads, 0, stream>>>(
        p, sums_data, segments, static_cast<T*>(to_up.data_ptr()),
        to_up.dim() == 3 ? to_up.stride(0) : 0, to_up.stride(to_up.dim() - 2),
        to_up.stride(to_up.dim() - 1), static_cast<T*>(to_bias.data_ptr()), parts_data + rows);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  total_kernel<<<1, kThreads, 0, stream>>>(parts_data, parts, as_alpha(to_alpha));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional(torch::stable::contiguous(*t)) : std::nullopt;
}

Tensor graft_project(const Tensor& h,
                     const Tensor& hidden,
                     const Tensor& up,
                     const std::optional<Tensor>& bias,
                     const Tensor& alpha) {
  const ProjectShape shape = check_graft_project("graft_project", h, true, hidden, up, bias, alpha);
  const OnDeviceOf device(h);
  Tensor out = empty(shape.out, h);
  const Tensor dense = torch::stable::contiguous(h);
  const Tensor units = torch::stable::contiguous(hidden);
  const std::optional<Tensor> offsets = contiguous(bias);
  switch (h.scalar_type()) {
    case ScalarType::Float:
      project(operands<float>(shape, units, up, offsets, alpha), dense, out, device.stream());
      break;
    case ScalarType::BFloat16:
      project(operands<__nv_bfloat16>(shape, units, up, offsets, alpha), dense, out,
              device.stream());
      break;
    default:
      project(operands<double>(shape, units, up, offsets, alpha), dense, out, device.stream());
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> graft_project_backward(const Tensor& grad,
                                                                  const Tensor& hidden,
                                                                  const Tensor& up,
                                                                  const std::optional<Tensor>& bias,
                                                                  const Tensor& alpha) {
  const ProjectShape shape =
      check_graft_project("graft_project_backward", grad, false, hidden, up, bias, alpha);
  const OnDeviceOf device(grad);
  Tensor to_hidden = empty(shape.hidden, hidden);
  Tensor to_up = torch::stable::empty_like(up);
  Tensor to_bias = empty(bias.has_value() ? shape.bias : std::vector<std::int64_t>{0}, up);
  Tensor to_alpha = torch::stable::empty_like(alpha);
  const Tensor dense = torch::stable::contiguous(grad);
  const Tensor units = torch::stable::contiguous(hidden);
  const std::optional<Tensor> offsets = contiguous(bias);
  switch (up.scalar_type()) {
    case ScalarType::Float:
      backward(operands<float>(shape, units, up, offsets, alpha), dense, to_hidden, to_up, to_bias,
               to_alpha, device.stream());
      break;
    case ScalarType::BFloat16:
      backward(operands<__nv_bfloat16>(shape, units, up, offsets, alpha), dense, to_hidden, to_up,
               to_bias, to_alpha, device.stream());
      break;
    default:
      backward(operands<double>(shape, units, up, offsets, alpha), dense, to_hidden, to_up, to_bias,
               to_alpha, device.stream());
  }
  return {to_hidden, to_up, to_bias, to_alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CUDA, m) {
  m.impl("graft_project", TORCH_BOX(&graft_project));
  m.impl("graft_project_backward", TORCH_BOX(&graft_project_backward));
}

}  // namespace esper::cuda
