// Loads and stores of one element in its compute type.
//
// Files in isa/ are compiled once per instruction set. Whatever they define must have internal
// linkage and they include no header with inline functions of its own: the linker would keep
// one copy of such a function, perhaps one that the machine cannot run.
#pragma once

#include <cstdint>

#include "ops/cpu/kernels.h"

namespace {

using esper::cpu::bfloat16;
using esper::cpu::Compute;

inline float load(const float* p) {
  return *p;
}

inline double load(const double* p) {
  return *p;
}

inline float load(const bfloat16* p) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(p->bits) << 16);
}

inline void store(float* p, float value) {
  *p = value;
}

inline void store(double* p, double value) {
  *p = value;
}

// Round to nearest, ties to even; every NaN becomes the quiet one, as in torch.
inline void store(bfloat16* p, float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  p->bits = static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded);
}

}  // namespace
