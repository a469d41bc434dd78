// graft_blend: h where alpha is 0 (its bits, whatever delta holds), otherwise h + alpha * delta.
// graft_blend_backward: (alpha * grad, sum(grad * delta)). Checks shared by the backends.
#pragma once

#include "ops/common/check.h"

namespace esper {

inline void check_alpha(const char* op, const Tensor& alpha, const Tensor& model) {
  if (alpha.numel() != 1) {
    fail(op, "got alpha of shape " + shape_of(alpha) + ", wanted one element");
  }
  const ScalarType dtype = alpha.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::BFloat16 &&
      dtype != ScalarType::Half) {
    fail(op, std::string("got alpha of dtype ") + torch::headeronly::toString(dtype) +
                 ", wanted float32, float64, bfloat16 or float16");
  }
  if (alpha.device() != model.device()) {
    fail(op, "got alpha on " + device_of(alpha) + ", wanted " + device_of(model) +
                 "; move it with alpha.to(...)");
  }
}

inline void check_graft_blend(const Tensor& h, const Tensor& delta, const Tensor& alpha) {
  constexpr const char* op = "graft_blend";
  check_dtype(op, "h", h);
  check_twin(op, "delta", delta, "h", h);
  check_alpha(op, alpha, h);
}

inline void check_graft_blend_backward(const Tensor& grad,
                                       const Tensor& delta,
                                       const Tensor& alpha) {
  constexpr const char* op = "graft_blend_backward";
  check_dtype(op, "delta", delta);
  check_twin(op, "grad", grad, "delta", delta);
  check_alpha(op, alpha, delta);
}

}  // namespace esper
