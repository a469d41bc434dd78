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

// Functions that return one deduce it: a signature must not name a vector that cannot be.
template <typename Element, int Bytes>
struct Packed {
  using Type __attribute__((vector_size(Bytes), aligned(alignof(Element)), may_alias)) = Element;
};

template <int Bytes>
inline auto load_packed(const float* p) {
  return *reinterpret_cast<const typename Packed<float, Bytes>::Type*>(p);
}

template <int Bytes>
inline auto load_packed(const double* p) {
  return *reinterpret_cast<const typename Packed<double, Bytes>::Type*>(p);
}

template <int Bytes>
inline auto load_packed(const std::uint16_t* p) {
  return *reinterpret_cast<const typename Packed<std::uint16_t, Bytes>::Type*>(p);
}

template <int Bytes>
inline auto load_packed(const bfloat16* p) {
  using Words = typename Packed<std::uint32_t, Bytes>::Type;
  const auto halves = load_packed<Bytes / 2>(&p->bits);
  return (typename Packed<float, Bytes>::Type)(__builtin_convertvector(halves, Words) << 16);
}

// A register of elements in the type that they are summed in.
template <typename C, typename T>
inline typename Register<C>::Type load_register(const T* p) {
  if constexpr (sizeof(C) == sizeof(Compute<T>)) {
    return load_packed<ESPER_REGISTER>(p);
  } else {
    return __builtin_convertvector(load_packed<ESPER_REGISTER / 2>(p), typename Register<C>::Type);
  }
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

// While it lives, results too small for a normal number become zero: on many machines they cost a
// hundred times the instruction. Squares of small gradients are such.
class FlushTiny {
 public:
#if defined(__x86_64__)
  FlushTiny() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8000u); }
  ~FlushTiny() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#endif
};

template <typename C, typename T>
inline FlatTotal sum_flat(const T* x, std::int64_t n, Compute<T> shift) {
  constexpr std::int64_t kRegister = ESPER_REGISTER / static_cast<std::int64_t>(sizeof(C));
  constexpr std::int64_t kLanes = kFlatBytes / static_cast<std::int64_t>(sizeof(C));
  constexpr std::int64_t kParts = kLanes / kRegister;
  const std::int64_t whole = n - n % kLanes;
  FlatTotal total{};
  {
    const FlushTiny flush;
    // Part by part where the lanes do not fit the registers: the block stays in the nearest cache.
    for (std::int64_t part = 0; part < kParts; part += 2) {
      FlatSums<C> first{};
      FlatSums<C> second{};
      for (const T* p = x + part * kRegister; p < x + whole; p += kLanes) {
        first.add(load_register<C>(p), static_cast<C>(shift));
        second.add(load_register<C>(p + kRegister), static_cast<C>(shift));
      }
      total.add(first);
      total.add(second);
    }
  }
  total.add(x + whole, n - whole, static_cast<double>(shift));
  return total;
}

// Below it, squares that have vanished may be most of a sum.
constexpr double kTinySquares = 1e-30;

// `n` adjacent elements, at most kFlatBlock.
template <typename T>
void stats_flat(const T* x, std::int64_t n, Partial* out) {
  using C = Compute<T>;
  C shift = C(0);
  for (std::int64_t i = 0; i < n; ++i) {
    const C value = load(x + i);
    if (value <= Register<C>::kLargest && value >= -Register<C>::kLargest) {
      shift = value;
      break;
    }
  }
  FlatTotal total = sum_flat<C>(x, n, shift);
  if constexpr (sizeof(C) < sizeof(double)) {
    // Squares of float32 values vanish, or overflow, where those in double do not.
    const bool tiny = total.square < kTinySquares && total.counts.abs_max > 0.0;
    if (tiny || !(total.square <= Register<double>::kLargest)) {
      total = sum_flat<double>(x, n, shift);
    }
  }
  *out = total.finish(n, static_cast<double>(shift));
}

}  // namespace
