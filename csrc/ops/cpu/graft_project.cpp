#include "ops/graft_project.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/common/layout.h"
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

template <typename T>
void project(const Operands<T>& operands, const Tensor& h, Tensor& out) {
  const std::int64_t rows = operands.shape.rows;
  const std::int64_t width = operands.shape.width;
  const auto* from = static_cast<const T*>(h.const_data_ptr());
  auto* to = static_cast<T*>(out.mutable_data_ptr());
  const auto kernel = project_kernels<T>().project;
  const auto work = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      const PackedUp<T> packed = operands.packed(group);
      // Divided only where this group is alone: nested regions run on one thread.
      torch::stable::parallel_for(
          0, rows, grain(width), [&](std::int64_t first, std::int64_t last) {
            kernel(operands.rows(packed, group, first, last - first), from + first * width,
                   to + (group * rows + first) * width);
          });
    }
  };
  torch::stable::parallel_for(0, operands.shape.groups, grain(rows * width), work);
}

// Where the gradients of one call go.
template <typename T>
struct Gradients {
  T* hidden;
  UpView<T> up;
  T* bias;
  std::vector<double> alpha;  // One for each group.
};

// What the rows of one segment add to gradients that sum over rows.
template <typename T>
struct Sums {
  std::vector<Compute<T>> up;
  std::vector<Compute<T>> bias;
  double alpha = 0.0;

  explicit Sums(const PackedUp<T>& packed) : up(packed.up.size()), bias(packed.bias.size()) {}

  void add(const Sums& other) {
    for (std::size_t i = 0; i < up.size(); ++i) {
      up[i] += other.up[i];
    }
    for (std::size_t i = 0; i < bias.size(); ++i) {
      bias[i] += other.bias[i];
    }
    alpha += other.alpha;
  }
};

template <typename T>
void write_sums(const Operands<T>& operands,
                const PackedUp<T>& packed,
                const Sums<T>& sums,
                std::int64_t group,
                Gradients<T>& to) {
  const ProjectShape& shape = operands.shape;
  const std::int64_t padded = operands.padded();
  const Compute<T> alpha = operands.alpha;
  const Compute<T>* sum = sums.up.data();
  to.up.for_each(group, shape.width, shape.rank, [=](T& weight, std::int64_t i, std::int64_t r) {
    assign(weight, alpha * sum[r * padded + i]);
  });
  double to_alpha = sums.alpha;
  for (std::size_t i = 0; i < sums.bias.size() && i < static_cast<std::size_t>(shape.width); ++i) {
    assign(to.bias[group * shape.width + static_cast<std::int64_t>(i)], alpha * sums.bias[i]);
    to_alpha += static_cast<double>(packed.bias[i]) * static_cast<double>(sums.bias[i]);
  }
  to.alpha[static_cast<std::size_t>(group)] = to_alpha;
}

template <typename T>
void backward_group(const Operands<T>& operands,
                    const T* grad,
                    std::int64_t group,
                    Gradients<T>& to) {
  const std::int64_t rows = operands.shape.rows;
  const std::int64_t width = operands.shape.width;
  const std::int64_t length = std::max(kRows, (rows + kSegments - 1) / kSegments);
  const std::int64_t segments = std::max<std::int64_t>(1, (rows + length - 1) / length);
  const PackedUp<T> packed = operands.packed(group);
  std::vector<Sums<T>> sums(static_cast<std::size_t>(segments), Sums<T>(packed));
  const auto kernel = project_kernels<T>().backward;
  torch::stable::parallel_for(0, segments, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t segment = begin; segment < end; ++segment) {
      Sums<T>& own = sums[static_cast<std::size_t>(segment)];
      const std::int64_t first = segment * length;
      own.alpha = kernel(operands.rows(packed, group, first, std::min(length, rows - first)),
                         grad + (group * rows + first) * width,
                         to.hidden + operands.hidden_at(group, first), own.up.data(),
                         own.bias.empty() ? nullptr : own.bias.data());
    }
  });
  for (std::size_t segment = 1; segment < sums.size(); ++segment) {
    sums[0].add(sums[segment]);
  }
  write_sums(operands, packed, sums[0], group, to);
}

template <typename T>
double backward(const Operands<T>& operands,
                const Tensor& grad,
                Tensor& to_hidden,
                Tensor& to_up,
                Tensor& to_bias) {
  const ProjectShape& shape = operands.shape;
  Gradients<T> to{static_cast<T*>(to_hidden.mutable_data_ptr()),
                  UpView<T>(static_cast<T*>(to_up.mutable_data_ptr()), to_up),
                  static_cast<T*>(to_bias.mutable_data_ptr()),
                  std::vector<double>(static_cast<std::size_t>(shape.groups))};
  const auto* from = static_cast<const T*>(grad.const_data_ptr());
  const auto work = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      backward_group(operands, from, group, to);
    }
  };
  torch::stable::parallel_for(0, shape.groups, grain(shape.rows * shape.width), work);
  double total = 0.0;
  for (const double value : to.alpha) {
    total += value;
  }
  return total;
}

Tensor graft_project(const Tensor& h,
                     const Tensor& hidden,
                     const Tensor& up,
                     const std::optional<Tensor>& bias,
                     const Tensor& alpha) {
  const ProjectShape shape = check_graft_project("graft_project", h, true, hidden, up, bias, alpha);
  Tensor out = empty_of(shape.out, h);
  const double a = read_alpha(alpha);
  if (is_off(a, h.scalar_type())) {
    torch::stable::copy_(out, h);
    return out;
  }
  const Tensor dense_h = dense_of(h);
  const Tensor dense_hidden = dense_of(hidden);
  const std::optional<Tensor> dense_bias = dense_of(bias);
  switch (h.scalar_type()) {
    case ScalarType::Float:
      project(Operands<float>(shape, dense_hidden, up, dense_bias, a), dense_h, out);
      break;
    case ScalarType::BFloat16:
      project(Operands<bfloat16>(shape, dense_hidden, up, dense_bias, a), dense_h, out);
      break;
    default:
      project(Operands<double>(shape, dense_hidden, up, dense_bias, a), dense_h, out);
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
  Tensor to_hidden = empty_of(shape.hidden, hidden);
  Tensor to_up = empty_in_layout_of(up);
  Tensor to_bias = empty_of(bias.has_value() ? shape.bias : std::vector<std::int64_t>{0}, up);
  Tensor to_alpha = empty_in_layout_of(alpha);
  const Tensor dense = dense_of(grad);
  const Tensor dense_hidden = dense_of(hidden);
  const std::optional<Tensor> dense_bias = dense_of(bias);
  const double a = read_alpha(alpha);
  double total = 0.0;
  switch (up.scalar_type()) {
    case ScalarType::Float:
      total = backward(Operands<float>(shape, dense_hidden, up, dense_bias, a), dense, to_hidden,
                       to_up, to_bias);
      break;
    case ScalarType::BFloat16:
      total = backward(Operands<bfloat16>(shape, dense_hidden, up, dense_bias, a), dense, to_hidden,
                       to_up, to_bias);
      break;
    default:
      total = backward(Operands<double>(shape, dense_hidden, up, dense_bias, a), dense, to_hidden,
                       to_up, to_bias);
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
