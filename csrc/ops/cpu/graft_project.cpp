#include "ops/graft_project.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/cpu/alpha.h"
#include "ops/cpu/packed.h"

namespace esper::cpu {
namespace {

// Elements of out that are worth a thread of their own.
constexpr std::int64_t kGrain = 32768;
// The gradient to up is summed over segments of rows, of kRows at least and kSegments of them at
// most. They depend on the shape alone, so the result does not depend on the thread count.
constexpr std::int64_t kRows = 1024;
constexpr std::int64_t kSegments = 64;

std::int64_t grain(std::int64_t elements) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, elements));
}

Tensor empty(const std::vector<std::int64_t>& shape, const Tensor& like) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()});
}

template <typename T>
void project(const Packed<T>& packed, const Tensor& h, double alpha, Tensor& out) {
  const std::int64_t rows = packed.shape.rows;
  const std::int64_t width = packed.shape.width;
  const auto* from = static_cast<const T*>(h.const_data_ptr());
  auto* to = static_cast<T*>(out.mutable_data_ptr());
  const auto kernel = kernels_for<T>().project.project;
  const auto work = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      const auto up = packed.up(group);
      // Divided only where this group is alone: nested regions run on one thread.
      torch::stable::parallel_for(
          0, rows, grain(width), [&](std::int64_t first, std::int64_t last) {
            const auto hidden = packed.hidden(group, first, last - first);
            kernel(from + first * width, hidden.data(), up.data(), packed.rank, packed.padded,
                   static_cast<Compute<T>>(alpha), to + (group * rows + first) * width,
                   last - first, width);
          });
    }
  };
  torch::stable::parallel_for(0, packed.shape.groups, grain(rows * width), work);
}

// Where the gradients of one call go.
template <typename T>
struct Gradients {
  T* hidden;
  View<T> up;
  T* bias;
  double alpha;
  std::vector<double> to_alpha;  // One for each group.
};

// One segment of the rows of a group: writes the gradient to hidden, adds to that of up, and
// returns that to alpha.
template <typename T>
double backward_segment(const Packed<T>& packed,
                        const T* grad,
                        const std::vector<Compute<T>>& up,
                        std::int64_t group,
                        std::int64_t first,
                        std::int64_t rows,
                        Gradients<T>& to,
                        std::vector<Compute<T>>& to_up) {
  using C = Compute<T>;
  const ProjectShape& shape = packed.shape;
  const auto hidden = packed.hidden(group, first, rows);
  std::vector<C> to_hidden(hidden.size());
  kernels_for<T>().project.backward(grad + (group * shape.rows + first) * shape.width,
                                    hidden.data(), up.data(), packed.rank, packed.padded,
                                    to_hidden.data(), to_up.data(), rows, shape.width);
  double to_alpha = 0.0;
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    to_alpha += static_cast<double>(hidden[i]) * static_cast<double>(to_hidden[i]);
  }
  const C alpha = static_cast<C>(to.alpha);
  for (std::int64_t row = 0; row < rows; ++row) {
    T* out = to.hidden + ((first + row) * shape.groups + group) * shape.rank;
    for (std::int64_t r = 0; r < shape.rank; ++r) {
      assign(out[r], alpha * to_hidden[static_cast<std::size_t>(row * packed.rank + r)]);
    }
  }
  return to_alpha;
}

template <typename T>
void write_up(const Packed<T>& packed,
              const std::vector<Compute<T>>& sum,
              std::int64_t group,
              Gradients<T>& to) {
  const ProjectShape& shape = packed.shape;
  const auto alpha = static_cast<Compute<T>>(to.alpha);
  for (std::int64_t i = 0; i < shape.width; ++i) {
    for (std::int64_t r = 0; r < shape.rank; ++r) {
      assign(to.up.at(group, i, r), alpha * sum[static_cast<std::size_t>(r * packed.padded + i)]);
    }
  }
  if (packed.bias.has_value()) {
    const std::size_t row = static_cast<std::size_t>(shape.rank * packed.padded);
    for (std::int64_t i = 0; i < shape.width; ++i) {
      assign(to.bias[group * shape.width + i], alpha * sum[row + static_cast<std::size_t>(i)]);
    }
  }
}

template <typename T>
void backward_group(const Packed<T>& packed, const T* grad, std::int64_t group, Gradients<T>& to) {
  const std::int64_t rows = packed.shape.rows;
  const std::int64_t length = std::max(kRows, (rows + kSegments - 1) / kSegments);
  const std::int64_t segments = std::max<std::int64_t>(1, (rows + length - 1) / length);
  const auto up = packed.up(group);
  std::vector<std::vector<Compute<T>>> sums(static_cast<std::size_t>(segments));
  std::vector<double> to_alpha(static_cast<std::size_t>(segments));
  torch::stable::parallel_for(0, segments, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      const auto index = static_cast<std::size_t>(s);
      sums[index].resize(up.size());
      const std::int64_t first = s * length;
      to_alpha[index] = backward_segment(packed, grad, up, group, first,
                                         std::min(length, rows - first), to, sums[index]);
    }
  });
  for (std::size_t s = 1; s < sums.size(); ++s) {
    for (std::size_t i = 0; i < up.size(); ++i) {
      sums[0][i] += sums[s][i];
    }
    to_alpha[0] += to_alpha[s];
  }
  write_up(packed, sums[0], group, to);
  to.to_alpha[static_cast<std::size_t>(group)] = to_alpha[0];
}

template <typename T>
double backward(const Packed<T>& packed,
                const Tensor& grad,
                double alpha,
                Tensor& to_hidden,
                Tensor& to_up,
                Tensor& to_bias) {
  Gradients<T> to{static_cast<T*>(to_hidden.mutable_data_ptr()),
                  View<T>(static_cast<T*>(to_up.mutable_data_ptr()), to_up),
                  static_cast<T*>(to_bias.mutable_data_ptr()), alpha,
                  std::vector<double>(static_cast<std::size_t>(packed.shape.groups))};
  const auto* from = static_cast<const T*>(grad.const_data_ptr());
  const auto work = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      backward_group(packed, from, group, to);
    }
  };
  torch::stable::parallel_for(0, packed.shape.groups, grain(packed.shape.rows * packed.shape.width),
                              work);
  double total = 0.0;
  for (const double value : to.to_alpha) {
    total += value;
  }
  return total;
}

Tensor graft_project(const Tensor& h,
                     const Tensor& hidden,
                     const Tensor& up,
                     const std::optional<Tensor>& bias,
                     const Tensor& alpha) {
  const ProjectShape shape = check_graft_project("graft_project", "h", h, hidden, up, bias, alpha);
  Tensor out = empty(shape.out(), h);
  const double a = read_alpha(alpha);
  if (is_off(a, h.scalar_type())) {
    torch::stable::copy_(out, h);
    return out;
  }
  const Tensor dense_h = torch::stable::contiguous(h);
  switch (h.scalar_type()) {
    case ScalarType::Float:
      project(Packed<float>(shape, hidden, up, bias), dense_h, a, out);
      break;
    case ScalarType::BFloat16:
      project(Packed<bfloat16>(shape, hidden, up, bias), dense_h, a, out);
      break;
    default:
      project(Packed<double>(shape, hidden, up, bias), dense_h, a, out);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> graft_project_backward(const Tensor& grad,
                                                                  const Tensor& hidden,
                                                                  const Tensor& up,
                                                                  const std::optional<Tensor>& bias,
                                                                  const Tensor& alpha) {
  const ProjectShape shape =
      check_graft_project("graft_project_backward", "grad", grad, hidden, up, bias, alpha);
  Tensor to_hidden = empty(shape.hidden(), hidden);
  Tensor to_up = torch::stable::empty_like(up);
  Tensor to_bias = empty(bias.has_value() ? shape.bias() : std::vector<std::int64_t>{0}, up);
  Tensor to_alpha = torch::stable::empty_like(alpha);
  const Tensor dense = torch::stable::contiguous(grad);
  const double a = read_alpha(alpha);
  double total = 0.0;
  switch (up.scalar_type()) {
    case ScalarType::Float:
      total = backward(Packed<float>(shape, hidden, up, bias), dense, a, to_hidden, to_up, to_bias);
      break;
    case ScalarType::BFloat16:
      total =
          backward(Packed<bfloat16>(shape, hidden, up, bias), dense, a, to_hidden, to_up, to_bias);
      break;
    default:
      total =
          backward(Packed<double>(shape, hidden, up, bias), dense, a, to_hidden, to_up, to_bias);
  }
  write_alpha(to_alpha, total);
  return {to_hidden, to_up, to_bias, to_alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CPU, m) {
  m.impl("graft_project", TORCH_BOX(&graft_project));
  m.impl("graft_project_backward", TORCH_BOX(&graft_project_backward));
}

}  // namespace esper::cpu
