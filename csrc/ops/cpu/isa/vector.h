// Vectors of 64 bytes in the compute type of an element; see isa/scalar.h for the rule of this
// folder. The compiler splits them where registers are narrower, so lanes are the same
// everywhere.
#pragma once

#include "ops/cpu/isa/scalar.h"

namespace {

// Reads and writes through these need no alignment beyond that of one element.
using Floats __attribute__((vector_size(64), aligned(4), may_alias)) = float;
using Doubles __attribute__((vector_size(64), aligned(8), may_alias)) = double;
using Words __attribute__((vector_size(64))) = std::uint32_t;
using Halves __attribute__((vector_size(32), aligned(2), may_alias)) = std::uint16_t;

template <typename C>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = Floats;
};
template <>
struct VectorOf<double> {
  using Type = Doubles;
};

template <typename C>
using Vector = typename VectorOf<C>::Type;

template <typename C>
constexpr std::int64_t kLanes = 64 / static_cast<std::int64_t>(sizeof(C));

#define ESPER_INLINE inline __attribute__((always_inline))

ESPER_INLINE Floats load_vector(const float* p) {
  return *reinterpret_cast<const Floats*>(p);
}

ESPER_INLINE Doubles load_vector(const double* p) {
  return *reinterpret_cast<const Doubles*>(p);
}

ESPER_INLINE Floats load_vector(const bfloat16* p) {
  const Halves halves = *reinterpret_cast<const Halves*>(p);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

ESPER_INLINE void store_vector(float* p, Floats value) {
  *reinterpret_cast<Floats*>(p) = value;
}

ESPER_INLINE void store_vector(double* p, Doubles value) {
  *reinterpret_cast<Doubles*>(p) = value;
}

// As store(bfloat16*, float) does with one element.
ESPER_INLINE void store_vector(bfloat16* p, Floats value) {
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words nan = (Words)((bits & 0x7fffffffu) > 0x7f800000u);
  const Words kept = (nan & 0x7fc0u) | (~nan & rounded);
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(kept, Halves);
}

// The first `count` elements, and zeros after them.
template <typename T, typename C = Compute<T>>
ESPER_INLINE Vector<C> load_part(const T* p, std::int64_t count) {
  C lanes[kLanes<C>] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    lanes[i] = load(p + i);
  }
  return load_vector(lanes);
}

template <typename T, typename C = Compute<T>>
ESPER_INLINE void store_part(T* p, Vector<C> value, std::int64_t count) {
  C lanes[kLanes<C>];
  store_vector(lanes, value);
  for (std::int64_t i = 0; i < count; ++i) {
    store(p + i, lanes[i]);
  }
}

// Pairwise, in a fixed order.
template <typename C>
ESPER_INLINE C sum_of(Vector<C> value) {
  C lanes[kLanes<C>];
  store_vector(lanes, value);
  for (std::int64_t half = kLanes<C> / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

}  // namespace
