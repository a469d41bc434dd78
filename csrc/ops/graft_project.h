// graft_project: the second half of a seed that goes through few hidden units, together with its
// graft; for one seed, or for K candidates of one slot at once. Per candidate
//   out = h where alpha is 0 (its bits, whatever the rest holds),
//   out = h + alpha * (hidden @ up^T + bias) otherwise.
// graft_project_backward: gradients to hidden, up, bias and alpha, given that to out. Shapes, and
// the checks shared by the backends.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ops/common/check.h"

namespace esper {

// One seed: h [..., width], hidden [..., rank], up [width, rank], bias [width], out as h.
// K candidates: hidden [..., K * rank], up [K, width, rank], bias [K, width], out
// [K, ..., width]; all start from the same h.
struct ProjectShape {
  bool stacked = false;
  std::int64_t groups = 1;
  std::int64_t rows = 1;  // The product of what stands for the dots.
  std::int64_t width = 0;
  std::int64_t rank = 0;
  std::vector<std::int64_t> hidden;
  std::vector<std::int64_t> bias;
  std::vector<std::int64_t> out;
};

inline std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

inline void check_fits(const char* op,
                       const char* name,
                       const Tensor& t,
                       const std::vector<std::int64_t>& wanted,
                       const Tensor& up) {
  bool fits = t.dim() == static_cast<std::int64_t>(wanted.size());
  for (std::size_t i = 0; fits && i < wanted.size(); ++i) {
    fits = t.size(static_cast<std::int64_t>(i)) == wanted[i];
  }
  const std::string got = std::string("got ") + name;
  if (!fits) {
    fail(op, got + " of shape " + shape_of(t) + ", wanted " + text_of(wanted) +
                 " beside up of shape " + shape_of(up));
  }
  if (t.scalar_type() != up.scalar_type()) {
    fail(op, got + " of dtype " + torch::headeronly::toString(t.scalar_type()) + ", wanted " +
                 torch::headeronly::toString(up.scalar_type()) + " (that of up)");
  }
  if (t.device() != up.device()) {
    fail(op, got + " on " + device_of(t) + ", wanted " + device_of(up) + " (that of up)");
  }
}

// `outer` is h in the forward operator and the gradient of out in the backward one; hidden gives
// the dimensions that stand for the dots.
inline ProjectShape check_graft_project(const char* op,
                                        const Tensor& outer,
                                        bool forward,
                                        const Tensor& hidden,
                                        const Tensor& up,
                                        const std::optional<Tensor>& bias,
                                        const Tensor& alpha) {
  check_dtype(op, "up", up);
  if (up.dim() != 2 && up.dim() != 3) {
    fail(op, "got up of shape " + shape_of(up) +
                 ", wanted [width, rank], or [candidates, width, rank]");
  }
  if (hidden.dim() < 1) {
    fail(op, "got hidden without dimensions, wanted [..., rank]");
  }
  ProjectShape shape;
  shape.stacked = up.dim() == 3;
  shape.groups = shape.stacked ? up.size(0) : 1;
  shape.width = up.size(up.dim() - 2);
  shape.rank = up.size(up.dim() - 1);
  std::vector<std::int64_t> h;
  for (std::int64_t i = 0; i + 1 < hidden.dim(); ++i) {
    h.push_back(hidden.size(i));
    shape.rows *= hidden.size(i);
  }
  shape.hidden = h;
  shape.hidden.push_back(shape.groups * shape.rank);
  h.push_back(shape.width);
  shape.out = h;
  shape.bias = {shape.width};
  if (shape.stacked) {
    shape.out.insert(shape.out.begin(), shape.groups);
    shape.bias.insert(shape.bias.begin(), shape.groups);
  }
  check_fits(op, "hidden", hidden, shape.hidden, up);
  check_fits(op, forward ? "h" : "grad", outer, forward ? h : shape.out, up);
  if (bias.has_value()) {
    check_fits(op, "bias", *bias, shape.bias, up);
  }
  check_alpha(op, alpha, up);
  return shape;
}

}  // namespace esper
