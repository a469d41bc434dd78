// The operands of graft_project in the layout and type that its kernels want.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "ops/cpu/kernels.h"
#include "ops/graft_project.h"

namespace esper::cpu {

inline float as_compute(float value) {
  return value;
}
inline double as_compute(double value) {
  return value;
}
inline float as_compute(bfloat16 value) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value.bits) << 16);
}

inline void assign(float& to, float value) {
  to = value;
}
inline void assign(double& to, double value) {
  to = value;
}
inline void assign(bfloat16& to, float value) {
  to.bits = c10::BFloat16(value).x;
}

// A tensor of [groups, major, minor], or of [major, minor] where there is one group.
template <typename T>
struct View {
  T* data;
  std::int64_t group;
  std::int64_t major;
  std::int64_t minor;

  View(T* data, const Tensor& t)
      : data(data),
        group(t.dim() == 3 ? t.stride(0) : 0),
        major(t.stride(t.dim() - 2)),
        minor(t.stride(t.dim() - 1)) {}

  T& at(std::int64_t g, std::int64_t i, std::int64_t j) const {
    return data[g * group + i * major + j * minor];
  }
};

// A bias is one more row of up, and hidden units that are always 1.
template <typename T>
struct Packed {
  using C = Compute<T>;

  ProjectShape shape;
  Tensor hidden_units;
  Tensor up_weights;
  std::optional<Tensor> bias;
  std::int64_t rank;
  std::int64_t padded;  // Columns of a row of up, whole vectors of them.

  Packed(const ProjectShape& shape,
         const Tensor& hidden,
         const Tensor& up,
         const std::optional<Tensor>& given_bias)
      : shape(shape),
        hidden_units(torch::stable::contiguous(hidden)),
        up_weights(up),
        rank(shape.rank + (given_bias.has_value() ? 1 : 0)) {
    constexpr auto lanes = static_cast<std::int64_t>(64 / sizeof(C));
    padded = (shape.width + lanes - 1) / lanes * lanes;
    if (given_bias.has_value()) {
      bias = torch::stable::contiguous(*given_bias);
    }
  }

  // [rank, padded], with zeros beyond the width.
  std::vector<C> up(std::int64_t group) const {
    std::vector<C> out(static_cast<std::size_t>(rank * padded));
    const View<const T> view(static_cast<const T*>(up_weights.const_data_ptr()), up_weights);
    for (std::int64_t i = 0; i < shape.width; ++i) {
      for (std::int64_t r = 0; r < shape.rank; ++r) {
        out[static_cast<std::size_t>(r * padded + i)] = as_compute(view.at(group, i, r));
      }
    }
    if (bias.has_value()) {
      const T* b = static_cast<const T*>(bias->const_data_ptr()) + group * shape.width;
      for (std::int64_t i = 0; i < shape.width; ++i) {
        out[static_cast<std::size_t>(shape.rank * padded + i)] = as_compute(b[i]);
      }
    }
    return out;
  }

  // [rows, rank], of `rows` rows from `first` on.
  std::vector<C> hidden(std::int64_t group, std::int64_t first, std::int64_t rows) const {
    std::vector<C> out(static_cast<std::size_t>(rows * rank), C(1));
    const T* p = static_cast<const T*>(hidden_units.const_data_ptr());
    for (std::int64_t row = 0; row < rows; ++row) {
      const T* from = p + ((first + row) * shape.groups + group) * shape.rank;
      for (std::int64_t r = 0; r < shape.rank; ++r) {
        out[static_cast<std::size_t>(row * rank + r)] = as_compute(from[r]);
      }
    }
    return out;
  }
};

}  // namespace esper::cpu
