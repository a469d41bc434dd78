// Inner loops of graft_project and its backward; see isa/scalar.h for the rule of this folder.
//
// The rank is small and the width large: an ordinary matrix product would be bound by memory, so
// what it reads and writes is touched once here.
#pragma once

#include "ops/cpu/isa/vector.h"

namespace {

using esper::cpu::Projection;

// N vectors of one row of out, at column i. The last vector may reach beyond the width.
template <std::int64_t N, typename T>
ESPER_INLINE void project_strip(
    const Projection<T>& p, const T* hidden, const T* h, T* out, std::int64_t i) {
  using C = Compute<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  Vector<C> sum[N] = {};
  if (p.bias != nullptr) {
#pragma GCC unroll 4
    for (std::int64_t j = 0; j < N; ++j) {
      sum[j] = load_vector(p.bias + i + j * lanes);
    }
  }
  for (std::int64_t r = 0; r < p.rank; ++r) {
    const C unit = load(hidden + r);
    const C* up = p.up + r * p.padded + i;
#pragma GCC unroll 4
    for (std::int64_t j = 0; j < N; ++j) {
      sum[j] += unit * load_vector(up + j * lanes);
    }
  }
  if (i + N * lanes <= p.width) {
#pragma GCC unroll 4
    for (std::int64_t j = 0; j < N; ++j) {
      const std::int64_t k = i + j * lanes;
      store_vector(out + k, load_vector(h + k) + p.alpha * sum[j]);
    }
  } else {
    const std::int64_t left = p.width - i;
    store_part(out + i, load_part(h + i, left) + p.alpha * sum[0], left);
  }
}

template <typename T>
void project(const Projection<T>& p, const T* h, T* out) {
  constexpr std::int64_t lanes = kLanes<Compute<T>>;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const T* hidden = p.hidden + row * p.stride;
    const T* from = h + row * p.width;
    T* to = out + row * p.width;
    std::int64_t i = 0;
    for (; i + 4 * lanes <= p.width; i += 4 * lanes) {
      project_strip<4>(p, hidden, from, to, i);
    }
    for (; i < p.width; i += lanes) {
      project_strip<1>(p, hidden, from, to, i);
    }
  }
}

// How many rows, or vectors of a row, go through an inner loop together: as many as make a load
// serve several multiplications and still leave the sums in registers.
#ifdef __AVX512F__
constexpr std::int64_t kTogether = 2;
#else
constexpr std::int64_t kTogether = 1;
#endif

// R hidden units from r on, of N rows from `row` on: their gradient, and what they add to the sum
// that the gradient to alpha is made of.
template <std::int64_t R, std::int64_t N, typename T>
ESPER_INLINE Eight<double> some_to_hidden(
    const Projection<T>& p, std::int64_t r, std::int64_t row, const T* grad, T* to_hidden) {
  using C = Compute<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  const C* up = p.up + r * p.padded;
  const T* from = grad + row * p.width;
  Vector<C> sum[N][8] = {};
  for (std::int64_t i = 0; i < p.width; i += lanes) {
    const std::int64_t left = p.width - i;
    Vector<C> g[N];
#pragma GCC unroll 2
    for (std::int64_t n = 0; n < N; ++n) {
      const T* at = from + n * p.width + i;
      g[n] = left >= lanes ? load_vector(at) : load_part(at, left);
    }
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < R; ++j) {
      const Vector<C> weights = load_vector(up + j * p.padded + i);
#pragma GCC unroll 2
      for (std::int64_t n = 0; n < N; ++n) {
        sum[n][j] += g[n] * weights;
      }
    }
  }
  Eight<double> total = {};
#pragma GCC unroll 2
  for (std::int64_t n = 0; n < N; ++n) {
    const Eight<C> sums = sums_of<C>(sum[n]);
    Eight<C> units = {};
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < R; ++j) {
      const std::int64_t k = (row + n) * p.stride + r + j;
      units[j] = load(p.hidden + k);
      store(to_hidden + k, p.alpha * sums[j]);
    }
    total += __builtin_convertvector(units, Eight<double>) *
             __builtin_convertvector(sums, Eight<double>);
  }
  return total;
}

template <std::int64_t R, typename T>
ESPER_INLINE Eight<double> rows_to_hidden(const Projection<T>& p,
                                          std::int64_t r,
                                          const T* grad,
                                          T* to_hidden) {
  Eight<double> total = {};
  std::int64_t row = 0;
  for (; row + kTogether <= p.rows; row += kTogether) {
    total += some_to_hidden<R, kTogether>(p, r, row, grad, to_hidden);
  }
  for (; row < p.rows; ++row) {
    total += some_to_hidden<R, 1>(p, r, row, grad, to_hidden);
  }
  return total;
}

// N vectors, at column i, of to_up of R hidden units from r on gain the sum over the rows of
// hidden * grad. The last vector may reach beyond the width.
template <std::int64_t R, std::int64_t N, typename T>
ESPER_INLINE void some_to_up(
    const Projection<T>& p, std::int64_t r, std::int64_t i, const T* grad, Compute<T>* to_up) {
  using C = Compute<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  const std::int64_t left = p.width - i;
  C* to = to_up + r * p.padded + i;
  Vector<C> sum[N][R];
#pragma GCC unroll 2
  for (std::int64_t n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < R; ++j) {
      sum[n][j] = load_vector(to + j * p.padded + n * lanes);
    }
  }
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const T* from = grad + row * p.width + i;
    Vector<C> g[N];
#pragma GCC unroll 2
    for (std::int64_t n = 0; n < N; ++n) {
      g[n] = left >= N * lanes ? load_vector(from + n * lanes) : load_part(from, left);
    }
    const T* hidden = p.hidden + row * p.stride + r;
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < R; ++j) {
      const C unit = load(hidden + j);
#pragma GCC unroll 2
      for (std::int64_t n = 0; n < N; ++n) {
        sum[n][j] += unit * g[n];
      }
    }
  }
#pragma GCC unroll 2
  for (std::int64_t n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < R; ++j) {
      store_vector(to + j * p.padded + n * lanes, sum[n][j]);
    }
  }
}

template <std::int64_t R, typename T>
ESPER_INLINE void rows_to_up(const Projection<T>& p,
                             std::int64_t r,
                             const T* grad,
                             Compute<T>* to_up) {
  constexpr std::int64_t lanes = kLanes<Compute<T>>;
  std::int64_t i = 0;
  for (; i + kTogether * lanes <= p.width; i += kTogether * lanes) {
    some_to_up<R, kTogether>(p, r, i, grad, to_up);
  }
  for (; i < p.width; i += lanes) {
    some_to_up<R, 1>(p, r, i, grad, to_up);
  }
}

template <typename T>
void rows_to_bias(const Projection<T>& p, const T* grad, Compute<T>* to_bias) {
  for (std::int64_t row = 0; row < p.rows; ++row) {
    for (std::int64_t i = 0; i < p.width; ++i) {
      to_bias[i] += load(grad + row * p.width + i);
    }
  }
}

template <typename T>
double project_backward(
    const Projection<T>& all, const T* grad, T* to_hidden, Compute<T>* to_up, Compute<T>* to_bias) {
  // So few rows that the second use of the gradient finds it in the cache.
  constexpr std::int64_t block = 32;
  Eight<double> total = {};
  for (std::int64_t start = 0; start < all.rows; start += block) {
    Projection<T> p = all;
    p.hidden += start * p.stride;
    p.rows = all.rows - start < block ? all.rows - start : block;
    const T* from = grad + start * p.width;
    T* to = to_hidden + start * p.stride;
    std::int64_t r = 0;
    for (; r + 8 <= p.rank; r += 8) {
      total += rows_to_hidden<8>(p, r, from, to);
      rows_to_up<8>(p, r, from, to_up);
    }
    for (; r < p.rank; ++r) {
      total += rows_to_hidden<1>(p, r, from, to);
      rows_to_up<1>(p, r, from, to_up);
    }
    if (to_bias != nullptr) {
      rows_to_bias(p, from, to_bias);
    }
  }
  double sum = 0.0;
  for (std::int64_t lane = 0; lane < 8; ++lane) {
    sum += total[lane];
  }
  return sum;
}

}  // namespace
