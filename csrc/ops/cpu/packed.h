// The operands of graft_project as its kernels want them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>

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

// A tensor of [groups, width, rank], or of [width, rank] where there is one group.
template <typename T>
struct UpView {
  T* data;
  std::int64_t group;
  std::int64_t column;
  std::int64_t unit;

  UpView(T* data, const Tensor& t)
      : data(data),
        group(t.dim() == 3 ? t.stride(0) : 0),
        column(t.stride(t.dim() - 2)),
        unit(t.stride(t.dim() - 1)) {}

  // Calls work(element, column, unit) for all of one group, in the order of memory.
  template <typename Work>
  void for_each(std::int64_t g, std::int64_t width, std::int64_t rank, const Work& work) const {
    T* start = data + g * group;
    if (column == 1) {
      for (std::int64_t r = 0; r < rank; ++r) {
        for (std::int64_t i = 0; i < width; ++i) {
          work(start[r * unit + i], i, r);
        }
      }
    } else {
      for (std::int64_t i = 0; i < width; ++i) {
        for (std::int64_t r = 0; r < rank; ++r) {
          work(start[i * column + r * unit], i, r);
        }
      }
    }
  }
};

// up and bias of one group in the compute type, [rank, padded] and [padded], with zeros beyond
// the width.
template <typename T>
struct PackedUp {
  std::vector<Compute<T>> up;
  std::vector<Compute<T>> bias;
};

template <typename T>
struct Operands {
  ProjectShape shape;
  const T* hidden;
  UpView<const T> up;
  const T* bias;
  Compute<T> alpha;

  // hidden and bias are contiguous.
  Operands(const ProjectShape& shape,
           const Tensor& hidden,
           const Tensor& up,
           const std::optional<Tensor>& bias,
           double alpha)
      : shape(shape),
        hidden(static_cast<const T*>(hidden.const_data_ptr())),
        up(static_cast<const T*>(up.const_data_ptr()), up),
        bias(bias.has_value() ? static_cast<const T*>(bias->const_data_ptr()) : nullptr),
        alpha(static_cast<Compute<T>>(alpha)) {}

  std::int64_t padded() const {
    constexpr auto lanes = static_cast<std::int64_t>(64 / sizeof(Compute<T>));
    return (shape.width + lanes - 1) / lanes * lanes;
  }

  PackedUp<T> packed(std::int64_t group) const {
    PackedUp<T> out;
    const std::int64_t row = padded();
    out.up.resize(static_cast<std::size_t>(shape.rank * row));
    Compute<T>* to = out.up.data();
    up.for_each(group, shape.width, shape.rank,
                [=](const T& weight, std::int64_t i, std::int64_t r) {
                  to[r * row + i] = as_compute(weight);
                });
    if (bias != nullptr) {
      out.bias.resize(static_cast<std::size_t>(row));
      for (std::int64_t i = 0; i < shape.width; ++i) {
        out.bias[static_cast<std::size_t>(i)] = as_compute(bias[group * shape.width + i]);
      }
    }
    return out;
  }

  // Where in hidden a row of a group begins.
  std::int64_t hidden_at(std::int64_t group, std::int64_t row) const {
    return (row * shape.groups + group) * shape.rank;
  }

  Projection<T> rows(const PackedUp<T>& packed,
                     std::int64_t group,
                     std::int64_t first,
                     std::int64_t count) const {
    return {hidden + hidden_at(group, first),
            packed.up.data(),
            bias == nullptr ? nullptr : packed.bias.data(),
            shape.rank,
            shape.groups * shape.rank,
            padded(),
            shape.width,
            count,
            alpha};
  }
};

}  // namespace esper::cpu
