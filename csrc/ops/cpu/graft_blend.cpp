#include "ops/graft_blend.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/common/layout.h"
#include "ops/cpu/alpha.h"
#include "ops/cpu/kernels.h"

namespace esper::cpu {
namespace {

// Elements of one partial sum: fixed, so that the result does not depend on the thread count.
constexpr std::int64_t kBlock = 16384;
constexpr std::int64_t kGrain = 2 * kBlock;

template <typename T>
void blend(const Tensor& h, const Tensor& delta, double alpha, Tensor& out) {
  const auto* h_data = static_cast<const T*>(h.const_data_ptr());
  const auto* delta_data = static_cast<const T*>(delta.const_data_ptr());
  auto* out_data = static_cast<T*>(out.mutable_data_ptr());
  const auto& kernel = kernels_for<T>().blend;
  torch::stable::parallel_for(0, h.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernel.blend(h_data + begin, delta_data + begin, alpha, out_data + begin, end - begin);
  });
}

template <typename T>
double blend_backward(const Tensor& grad, const Tensor& delta, double alpha, Tensor& grad_delta) {
  const auto* grad_data = static_cast<const T*>(grad.const_data_ptr());
  const auto* delta_data = static_cast<const T*>(delta.const_data_ptr());
  auto* out_data = static_cast<T*>(grad_delta.mutable_data_ptr());
  const auto& kernel = kernels_for<T>().blend;
  const std::int64_t n = grad.numel();
  const std::int64_t blocks = (n + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<std::size_t>(blocks));
  torch::stable::parallel_for(0, blocks, 2, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t start = block * kBlock;
      sums[static_cast<std::size_t>(block)] =
          kernel.backward(grad_data + start, delta_data + start, alpha, out_data + start,
                          std::min(kBlock, n - start));
    }
  });
  double total = 0.0;
  for (const double sum : sums) {
    total += sum;
  }
  return total;
}

Tensor graft_blend(const Tensor& h, const Tensor& delta, const Tensor& alpha) {
  check_graft_blend(h, delta, alpha);
  Tensor out = empty_in_layout_of(h);
  const double a = read_alpha(alpha);
  if (is_off(a, h.scalar_type())) {
    torch::stable::copy_(out, h);
    return out;
  }
  const Tensor dense_h = in_layout_of(h, out);
  const Tensor dense_delta = in_layout_of(delta, out);
  switch (h.scalar_type()) {
    case ScalarType::Float:
      blend<float>(dense_h, dense_delta, a, out);
      break;
    case ScalarType::BFloat16:
      blend<bfloat16>(dense_h, dense_delta, a, out);
      break;
    default:
      blend<double>(dense_h, dense_delta, a, out);
  }
  return out;
}

std::tuple<Tensor, Tensor> graft_blend_backward(const Tensor& grad,
                                                const Tensor& delta,
                                                const Tensor& alpha) {
  check_graft_blend_backward(grad, delta, alpha);
  Tensor grad_delta = empty_in_layout_of(delta);
  Tensor grad_alpha = empty_in_layout_of(alpha);
  const Tensor dense_grad = in_layout_of(grad, grad_delta);
  const Tensor dense_delta = in_layout_of(delta, grad_delta);
  const double a = read_alpha(alpha);
  double total = 0.0;
  switch (delta.scalar_type()) {
    case ScalarType::Float:
      total = blend_backward<float>(dense_grad, dense_delta, a, grad_delta);
      break;
    case ScalarType::BFloat16:
      total = blend_backward<bfloat16>(dense_grad, dense_delta, a, grad_delta);
      break;
    default:
      total = blend_backward<double>(dense_grad, dense_delta, a, grad_delta);
  }
  write_alpha(grad_alpha, total);
  return {grad_delta, grad_alpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CPU, m) {
  m.impl("graft_blend", TORCH_BOX(&graft_blend));
  m.impl("graft_blend_backward", TORCH_BOX(&graft_blend_backward));
}

}  // namespace esper::cpu
