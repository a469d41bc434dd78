// Elementwise operators walk flat memory: they need every operand in one dense layout.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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

// empty_like, which goes through the dispatcher and costs more than the arithmetic of a small
// tensor: contiguous tensors are spared it.
inline torch::stable::Tensor empty_in_layout_of(const torch::stable::Tensor& model) {
  if (!model.is_contiguous()) {
    return torch::stable::empty_like(model);
  }
  std::int32_t dtype = 0;
  std::int32_t device_type = 0;
  AtenTensorHandle out = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(model.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(model.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(model.dim(), model.sizes().data(),
                                                         model.strides().data(), dtype, device_type,
                                                         model.get_device_index(), &out));
  return torch::stable::Tensor(out);
}

// `t` itself where it lies in memory as `model` does, otherwise a copy that does. `model` must
// come from empty_in_layout_of, which never overlaps and leaves no holes.
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
