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

// Eight lanes, and the same in double.
template <typename C>
struct EightOf {
  using Type __attribute__((vector_size(8 * sizeof(C)))) = C;
};
template <typename C>
using Eight = typename EightOf<C>::Type;

ESPER_INLINE Eight<float> halved(Floats v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}

ESPER_INLINE Eight<double> halved(Doubles v) {
  return v;
}

// The sums of eight vectors, each pairwise in the same order.
template <typename C>
ESPER_INLINE Eight<C> sums_of(const Vector<C>* v) {
  Eight<C> pairs[4];
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < 4; ++i) {
    const Eight<C> a = halved(v[2 * i]);
    const Eight<C> b = halved(v[2 * i + 1]);
    pairs[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
               __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
  Eight<C> quads[2];
#pragma GCC unroll 2
  for (std::int64_t i = 0; i < 2; ++i) {
    const Eight<C> a = pairs[2 * i];
    const Eight<C> b = pairs[2 * i + 1];
    quads[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
               __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

}  // namespace
