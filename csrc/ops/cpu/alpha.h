// Alpha is a tensor of one element and any floating dtype.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "ops/common/check.h"

namespace esper::cpu {

inline double read_alpha(const Tensor& alpha) {
  const void* p = alpha.const_data_ptr();
  switch (alpha.scalar_type()) {
    case ScalarType::Float:
      return *static_cast<const float*>(p);
    case ScalarType::BFloat16:
      return static_cast<float>(*static_cast<const c10::BFloat16*>(p));
    case ScalarType::Half:
      return static_cast<float>(*static_cast<const c10::Half*>(p));
    default:
      return *static_cast<const double*>(p);
  }
}

inline void write_alpha(const Tensor& alpha, double value) {
  void* p = alpha.mutable_data_ptr();
  switch (alpha.scalar_type()) {
    case ScalarType::Float:
      *static_cast<float*>(p) = static_cast<float>(value);
      break;
    case ScalarType::BFloat16:
      *static_cast<c10::BFloat16*>(p) = static_cast<float>(value);
      break;
    case ScalarType::Half:
      *static_cast<c10::Half*>(p) = static_cast<float>(value);
      break;
    default:
      *static_cast<double*>(p) = value;
  }
}

// Whether alpha is 0 in the type that elements of `dtype` are computed in.
inline bool is_off(double alpha, ScalarType dtype) {
  return dtype == ScalarType::Double ? alpha == 0.0 : static_cast<float>(alpha) == 0.0F;
}

}  // namespace esper::cpu
