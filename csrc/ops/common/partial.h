// Figures of some elements of one feature, as every backend of slot_stats computes them.
#pragma once

namespace esper {

// `mean`, `m2` (the sum of squared differences from `mean`) and `abs_max` are over the finite
// elements. Without initialisers, so that it has no constructor that a translation unit of one
// instruction set could lend to another; write `Partial p{}`.
struct Partial {
  double finite;
  double mean;
  double m2;
  double abs_max;
  double zeros;
  double non_finite;
};

}  // namespace esper
