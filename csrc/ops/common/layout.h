// Elementwise operators walk flat memory: they need every operand in one dense layout.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace esper {

// Same shape is assumed. Strides of dimensions of size 1 address nothing and may differ.
inline bool same_layout(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  const auto sizes = a.sizes();
  const auto left = a.strides();
  const auto right = b.strides();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && left[i] != right[i]) {
      return false;
    }
  }
  return true;
}

// `t` itself where it lies in memory as `model` does, otherwise a copy that does. `model` must
// come from empty_like, which never overlaps and leaves no holes.
inline torch::stable::Tensor in_layout_of(const torch::stable::Tensor& t,
                                          const torch::stable::Tensor& model) {
  if (same_layout(t, model)) {
    return t;
  }
  torch::stable::Tensor copy = torch::stable::empty_like(model);
  torch::stable::copy_(copy, t);
  return copy;
}

}  // namespace esper
