// Operators walk flat memory: they need their operands dense, elementwise ones in one layout.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

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

// Operators of torch are found by name at each call, which costs more than the arithmetic of a
// small tensor. These take the direct way where there is one.

inline torch::stable::Tensor empty_like_strided(std::int64_t dim,
                                                const std::int64_t* sizes,
                                                const std::int64_t* strides,
                                                const torch::stable::Tensor& like) {
  std::int32_t dtype = 0;
  std::int32_t device_type = 0;
  AtenTensorHandle out = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, device_type,
                                                         like.get_device_index(), &out));
  return torch::stable::Tensor(out);
}

inline torch::stable::Tensor empty_of(const std::vector<std::int64_t>& sizes,
                                      const torch::stable::Tensor& like) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i > 0; --i) {
    strides[i - 1] = stride;
    stride *= sizes[i - 1] > 0 ? sizes[i - 1] : 1;
  }
  return empty_like_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(),
                            like);
}

inline torch::stable::Tensor empty_in_layout_of(const torch::stable::Tensor& model) {
  if (!model.is_contiguous()) {
    return torch::stable::empty_like(model);
  }
  return empty_like_strided(model.dim(), model.sizes().data(), model.strides().data(), model);
}

inline torch::stable::Tensor dense_of(const torch::stable::Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<torch::stable::Tensor> dense_of(
    const std::optional<torch::stable::Tensor>& t) {
  return t.has_value() ? std::optional(dense_of(*t)) : std::nullopt;
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
