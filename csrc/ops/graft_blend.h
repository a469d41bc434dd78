// graft_blend: h where alpha is 0 (its bits, whatever delta holds), otherwise h + alpha * delta.
// graft_blend_backward: (alpha * grad, sum(grad * delta)). Checks shared by the backends.
#pragma once

#include "ops/common/check.h"

namespace esper {

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
