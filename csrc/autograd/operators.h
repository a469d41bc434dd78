// The operators of csrc/ops as the nodes here call them: through the dispatcher, which finds the
// kernel of the tensors' device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mul.h>

#include <optional>
#include <tuple>

namespace esper::autograd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <typename Op, typename... Arguments>
auto call_unrecorded(const Op& op, const Arguments&... arguments) {
  const at::AutoDispatchBelowAutograd below;
  return op.call(arguments...);
}

// Backward operators have gradients of their own (registered in Python), which are wanted where a
// backward pass is itself recorded.
template <typename Op, typename... Arguments>
auto call_backward(const Op& op, const Arguments&... arguments) {
  return at::GradMode::is_enabled() ? op.call(arguments...) : call_unrecorded(op, arguments...);
}

inline Tensor blend(const Tensor& h, const Tensor& delta, const Tensor& alpha) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&);
  static const auto op = operator_named<Signature>("esper::graft_blend");
  return call_unrecorded(op, h, delta, alpha);
}

// The gradients to delta and, where alpha learns, to alpha; without that delta is not needed.
inline std::tuple<Tensor, Tensor> blend_backward(const Tensor& grad,
                                                 const Tensor& delta,
                                                 const Tensor& alpha) {
  if (delta.defined()) {
    using Signature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&);
    static const auto op = operator_named<Signature>("esper::graft_blend_backward");
    return call_backward(op, grad, delta, alpha);
  }
  // Without dimensions alpha takes part in no type promotion.
  const bool plain = alpha.scalar_type() == grad.scalar_type() && alpha.dim() <= grad.dim();
  return {at::mul(grad, plain ? alpha : alpha.view(at::IntArrayRef{})), Tensor()};
}

// Whether a call with these inputs must be recorded; torch refuses what cannot be, a derivative
// taken forward.
template <typename... Inputs>
bool learns(const Inputs&... inputs) {
  return (at::GradMode::is_enabled() && (... || inputs.requires_grad())) ||
         (... || inputs._fw_grad(0).defined());
}

}  // namespace esper::autograd
