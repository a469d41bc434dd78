// Inner loop of record_stats; see isa/scalar.h for the rule of this folder.
//
// A block is summed in the compute type of its elements: it is short, and its sums are of
// differences from its first finite element. Blocks are joined in double.
#pragma once

#include "ops/cpu/isa/scalar.h"

namespace {

using esper::Partial;

// Comparisons of vectors wider than the registers would be taken lane by lane.
#if defined(__AVX512F__)
#define ESPER_REGISTER 64
#elif defined(__AVX2__)
#define ESPER_REGISTER 32
#else
#define ESPER_REGISTER 16
#endif

constexpr std::int64_t kFlatBytes = 128;  // of lanes, whatever the registers

template <typename C>
struct Register;
template <>
struct Register<float> {
  using Type __attribute__((vector_size(ESPER_REGISTER), aligned(4), may_alias)) = float;
  using Mask __attribute__((vector_size(ESPER_REGISTER), may_alias)) = std::int32_t;
  static constexpr float kLargest = 3.4028234663852886e38F;
};
template <>
struct Register<double> {
  using Type __attribute__((vector_size(ESPER_REGISTER), aligned(8), may_alias)) = double;
  using Mask __attribute__((vector_size(ESPER_REGISTER), may_alias)) = std::int64_t;
  static constexpr double kLargest = 1.7976931348623157e308;
};

template <typename T>
inline typename Register<T>::Type load_register(const T* p) {
  return *reinterpret_cast<const typename Register<T>::Type*>(p);
}

inline Register<float>::Type load_register(const bfloat16* p) {
  using Halves __attribute__((vector_size(ESPER_REGISTER / 2), aligned(2), may_alias)) =
      std::uint16_t;
  using Words __attribute__((vector_size(ESPER_REGISTER))) = std::uint32_t;
  const Halves halves = *reinterpret_cast<const Halves*>(p);
  return (Register<float>::Type)(__builtin_convertvector(halves, Words) << 16);
}

// One register's share of the lanes. Comparisons give lanes of 0 or -1.
template <typename C>
struct FlatSums {
  using Values = typename Register<C>::Type;
  using Mask = typename Register<C>::Mask;

  Values sum;
  Values square;
  Values abs_max;
  Mask finite;
  Mask zeros;

  void add(Values value, C shift) {
    const Values magnitude = (Values)((Mask)value & ~(Mask)(-Values{}));
    const Mask is_finite = magnitude <= Register<C>::kLargest;
    const Values difference = (Values)((Mask)(value - shift) & is_finite);
    const Values kept = (Values)((Mask)magnitude & is_finite);
    const Mask larger = kept > abs_max;
    sum += difference;
    square += difference * difference;
    abs_max = (Values)(((Mask)kept & larger) | ((Mask)abs_max & ~larger));
    finite -= is_finite;
    zeros -= (Mask)(value == C(0));
  }
};

// Sums in double, of everything that is known about a block.
struct FlatTotal {
  Partial counts;
  double sum;
  double square;

  template <typename C>
  void add(const FlatSums<C>& part) {
    for (std::int64_t i = 0; i < ESPER_REGISTER / static_cast<std::int64_t>(sizeof(C)); ++i) {
      sum += static_cast<double>(part.sum[i]);
      square += static_cast<double>(part.square[i]);
      counts.finite += static_cast<double>(part.finite[i]);
      counts.zeros += static_cast<double>(part.zeros[i]);
      larger(static_cast<double>(part.abs_max[i]));
    }
  }

  template <typename T>
  void add(const T* x, std::int64_t n, double shift) {
    for (std::int64_t i = 0; i < n; ++i) {
      const double value = static_cast<double>(load(x + i));
      const double magnitude = __builtin_fabs(value);
      const bool finite = magnitude <= Register<double>::kLargest;
      const double difference = finite ? value - shift : 0.0;
      sum += difference;
      square += difference * difference;
      counts.finite += finite ? 1.0 : 0.0;
      counts.zeros += value == 0.0 ? 1.0 : 0.0;
      larger(finite ? magnitude : 0.0);
    }
  }

  void larger(double magnitude) {
    counts.abs_max = magnitude > counts.abs_max ? magnitude : counts.abs_max;
  }

  Partial finish(std::int64_t n, double shift) const {
    Partial out = counts;
    out.non_finite = static_cast<double>(n) - out.finite;
    if (out.finite > 0.0) {
      const double offset = sum / out.finite;
      out.mean = shift + offset;
      const double m2 = square - sum * offset;
      out.m2 = m2 < 0.0 ? 0.0 : m2;
    }
    return out;
  }
};

// `n` adjacent elements, at most kFlatBlock.
template <typename T>
void stats_flat(const T* x, std::int64_t n, Partial* out) {
  using C = Compute<T>;
  constexpr std::int64_t kRegister = ESPER_REGISTER / static_cast<std::int64_t>(sizeof(C));
  constexpr std::int64_t kLanes = kFlatBytes / static_cast<std::int64_t>(sizeof(C));
  constexpr std::int64_t kParts = kLanes / kRegister;
  C shift = C(0);
  for (std::int64_t i = 0; i < n; ++i) {
    const C value = static_cast<C>(load(x + i));
    if (value <= Register<C>::kLargest && value >= -Register<C>::kLargest) {
      shift = value;
      break;
    }
  }
  const std::int64_t whole = n - n % kLanes;
  FlatTotal total{};
  // Part by part where the lanes do not fit the registers: the block stays in the nearest cache.
  for (std::int64_t part = 0; part < kParts; part += 2) {
    FlatSums<C> first{};
    FlatSums<C> second{};
    for (const T* p = x + part * kRegister; p < x + whole; p += kLanes) {
      first.add(load_register(p), shift);
      second.add(load_register(p + kRegister), shift);
    }
    total.add(first);
    total.add(second);
  }
  total.add(x + whole, n - whole, static_cast<double>(shift));
  if (!(total.square <= Register<double>::kLargest)) {
    // Squares of large float32 values overflow where those in double do not.
    total = {};
    total.add(x, n, static_cast<double>(shift));
  }
  *out = total.finish(n, static_cast<double>(shift));
}

}  // namespace
