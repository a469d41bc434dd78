#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/operators.h"

namespace esper::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor project(const Tensor& h,
               const Tensor& hidden,
               const Tensor& up,
               const OptionalTensor& bias,
               const Tensor& alpha) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&);
  static const auto op = operator_named<Signature>("esper::graft_project");
  return call_unrecorded(op, h, hidden, up, bias, alpha);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> project_backward(const Tensor& grad,
                                                            const Tensor& hidden,
                                                            const Tensor& up,
                                                            const OptionalTensor& bias,
                                                            const Tensor& alpha) {
  using Signature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&);
  static const auto op = operator_named<Signature>("esper::graft_project_backward");
  return call_backward(op, grad, hidden, up, bias, alpha);
}

// [..., width] as [rows, width], a width of 0 too.
Tensor rows_of(const Tensor& t) {
  return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2);
}

// The same of one candidate by products of torch; its bits are those of a Linear and a blend.
std::tuple<Tensor, Tensor, Tensor, Tensor> products_backward(const Tensor& grad,
                                                             const Tensor& hidden,
                                                             const Tensor& up,
                                                             const Tensor& delta,
                                                             const Tensor& alpha) {
  auto [to_delta, to_alpha] = blend_backward(grad, delta, alpha);
  const Tensor rows = rows_of(to_delta);
  return {at::matmul(to_delta, up), at::matmul(rows.t(), rows_of(hidden)), rows.sum(0), to_alpha};
}

// [..., rank], or [..., candidates * rank].
Tensor first_half(const Tensor& x, const Tensor& down, const OptionalTensor& bias) {
  if (down.dim() == 2) {
    return at::linear(x, down, bias);
  }
  return at::linear(x, down.flatten(0, 1), bias.has_value() ? bias->flatten() : bias);
}

// Between the halves; the order is that of ACTIVATIONS in esper/kasmina/residual.py.
enum Activation : std::int64_t { kNone, kRelu, kGelu, kSilu, kTanh, kSigmoid, kActivations };

Tensor activated(std::int64_t activation, const Tensor& before) {
  switch (activation) {
    case kRelu:
      return at::relu(before);
    case kGelu:
      return at::gelu(before);
    case kSilu:
      return at::silu(before);
    case kTanh:
      return at::tanh(before);
    case kSigmoid:
      return at::sigmoid(before);
    default:
      return before;
  }
}

Tensor through_activation(std::int64_t activation,
                          const Tensor& grad,
                          const Tensor& before,
                          const Tensor& after) {
  switch (activation) {
    case kRelu:
      return at::threshold_backward(grad, after, 0);
    case kGelu:
      return at::gelu_backward(grad, before);
    case kSilu:
      return at::silu_backward(grad, before);
    case kTanh:
      return at::tanh_backward(grad, after);
    case kSigmoid:
      return at::sigmoid_backward(grad, after);
    default:
      return grad;
  }
}

bool needs_before(std::int64_t activation) {
  return activation == kGelu || activation == kSilu;
}

struct ResidualGraft : torch::autograd::Function<ResidualGraft> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& h,
                        const Tensor& x,
                        const Tensor& down,
                        const Tensor& up,
                        const Tensor& alpha,
                        const OptionalTensor& down_bias,
                        const OptionalTensor& up_bias,
                        std::int64_t activation,
                        bool fused) {
    const at::AutoDispatchBelowAutograd below;
    const Tensor before = first_half(x, down, down_bias);
    const Tensor hidden = activated(activation, before);
    const Tensor delta = fused ? Tensor() : at::linear(hidden, up, up_bias);
    ctx->saved_data["kind"] = 2 * activation + (fused ? 1 : 0);
    ctx->save_for_backward(
        {x, down, up, alpha, down_bias.value_or(Tensor()), up_bias.value_or(Tensor()), hidden,
         needs_before(activation) ? before : Tensor(), alpha.requires_grad() ? delta : Tensor()});
    return fused ? project(h, hidden, up, up_bias, alpha) : blend(h, delta, alpha);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor& grad = grads[0];
    const auto kind = ctx->saved_data["kind"].toInt();
    const auto activation = kind / 2;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const Tensor& down = saved[1];
    const Tensor& up = saved[2];
    const OptionalTensor down_bias = present(saved[4]);
    const OptionalTensor up_bias = present(saved[5]);
    Tensor hidden = saved[6];
    Tensor before = saved[7];
    Tensor delta = saved[8];
    if (at::GradMode::is_enabled()) {
      // What was saved knows nothing of where it came from.
      before = first_half(x, down, down_bias);
      hidden = activated(activation, before);
      delta = delta.defined() ? at::linear(hidden, up, up_bias) : delta;
    }
    auto [to_hidden, to_up, to_up_bias, to_alpha] =
        kind % 2 == 1 ? project_backward(grad, hidden, up, up_bias, saved[3])
                      : products_backward(grad, hidden, up, delta, saved[3]);
    const Tensor to_before = through_activation(activation, to_hidden, before, hidden);
    const Tensor rows = rows_of(to_before);
    return {
        ctx->needs_input_grad(0) ? (up.dim() == 3 ? grad.sum(0) : grad) : Tensor(),
        ctx->needs_input_grad(1) ? at::matmul(to_before, down.flatten(0, -2)) : Tensor(),
        ctx->needs_input_grad(2) ? at::matmul(rows.t(), rows_of(x)).view(down.sizes()) : Tensor(),
        to_up,
        to_alpha,
        down_bias.has_value() ? rows.sum(0).view(down_bias->sizes()) : Tensor(),
        up_bias.has_value() ? to_up_bias : Tensor(),
        Tensor(),
        Tensor(),
    };
  }

  static OptionalTensor present(const Tensor& t) {
    return t.defined() ? OptionalTensor(t) : std::nullopt;
  }
};

Tensor residual_graft(const Tensor& h,
                      const Tensor& x,
                      const Tensor& down,
                      const Tensor& up,
                      const Tensor& alpha,
                      const OptionalTensor& down_bias,
                      const OptionalTensor& up_bias,
                      std::int64_t activation,
                      bool fused) {
  TORCH_CHECK(activation >= kNone && activation < kActivations,
              "esper::residual_graft: got activation ", activation, ", wanted 0 to ",
              kActivations - 1);
  return ResidualGraft::apply(h, x, down, up, alpha, down_bias, up_bias, activation, fused);
}

}  // namespace
}  // namespace esper::autograd

TORCH_LIBRARY_FRAGMENT(esper_autograd, m) {
  m.def(
      "residual_graft(Tensor h, Tensor x, Tensor down, Tensor up, Tensor alpha, Tensor? down_bias, "
      "Tensor? up_bias, int activation, bool fused) -> Tensor",
      &esper::autograd::residual_graft);
}
