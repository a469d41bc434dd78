// Errors that name the operator, what it got and what it wanted; shared by all backends.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace esper {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] inline void fail(const char* op, const std::string& message) {
  throw std::runtime_error(std::string("esper::") + op + ": " + message);
}

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << '[';
  for (std::int64_t i = 0; i < t.dim(); ++i) {
    out << (i == 0 ? "" : ", ") << t.size(i);
  }
  out << ']';
  return out.str();
}

inline std::string device_of(const Tensor& t) {
  const std::string type = t.is_cpu() ? "cpu" : t.is_cuda() ? "cuda" : "another device type";
  return t.is_cuda() ? type + ":" + std::to_string(t.get_device_index()) : type;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) {
    return false;
  }
  for (std::int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) {
      return false;
    }
  }
  return true;
}

inline void check_dtype(const char* op, const char* name, const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::BFloat16) {
    fail(op, std::string("got ") + name + " of dtype " + torch::headeronly::toString(dtype) +
                 ", wanted float32, float64 or bfloat16");
  }
}

inline void check_twin(const char* op,
                       const char* name,
                       const Tensor& t,
                       const char* model_name,
                       const Tensor& model) {
  const std::string of_model = std::string(" (that of ") + model_name + ")";
  if (!same_shape(t, model)) {
    fail(op, std::string("got ") + name + " of shape " + shape_of(t) + ", wanted " +
                 shape_of(model) + of_model);
  }
  if (t.scalar_type() != model.scalar_type()) {
    fail(op, std::string("got ") + name + " of dtype " +
                 torch::headeronly::toString(t.scalar_type()) + ", wanted " +
                 torch::headeronly::toString(model.scalar_type()) + of_model);
  }
  if (t.device() != model.device()) {
    fail(op, std::string("got ") + name + " on " + device_of(t) + ", wanted " + device_of(model) +
                 of_model);
  }
}

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

}  // namespace esper
