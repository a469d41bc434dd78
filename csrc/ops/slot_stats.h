// slot_stats: five figures of every feature of an activation, in one pass. The rows of the
// result, and the checks shared by the backends.
#pragma once

#include "ops/common/check.h"

namespace esper {

enum StatsRow { kMean, kVariance, kAbsMax, kZeroFraction, kNonFinite, kStatsRows };

// An activation seen as [outer, features, inner] in contiguous memory.
struct StatsShape {
  std::int64_t outer = 1;
  std::int64_t features = 1;
  std::int64_t inner = 1;
};

inline StatsShape check_slot_stats(const Tensor& x, std::int64_t axis) {
  constexpr const char* op = "slot_stats";
  check_dtype(op, "x", x);
  const std::int64_t dim = x.dim();
  if (dim < 1) {
    fail(op, "got x without dimensions, wanted at least one");
  }
  if (axis < -dim || axis >= dim) {
    fail(op, "got axis " + std::to_string(axis) + " for x of shape " + shape_of(x) + ", wanted " +
                 std::to_string(-dim) + " to " + std::to_string(dim - 1));
  }
  axis = axis < 0 ? axis + dim : axis;
  StatsShape shape;
  for (std::int64_t i = 0; i < dim; ++i) {
    (i < axis ? shape.outer : i == axis ? shape.features : shape.inner) *= x.size(i);
  }
  return shape;
}

}  // namespace esper
