// Inner loops of graft_project and its backward; see isa/scalar.h for the rule of this folder.
//
// `rank` is small and `width` large: an ordinary matrix product would be bound by memory, so
// what it reads and writes is touched once here. Packed operands are in the compute type, and
// rows of `up` are padded with zeros to whole vectors.
#pragma once

#include "ops/cpu/isa/vector.h"

namespace {

template <typename T>
void project(const T* h,
             const Compute<T>* hidden,
             const Compute<T>* up,
             std::int64_t rank,
             std::int64_t padded,
             Compute<T> alpha,
             T* out,
             std::int64_t rows,
             std::int64_t width) {
  using C = Compute<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  constexpr std::int64_t strip = 4 * lanes;
  for (std::int64_t row = 0; row < rows; ++row, h += width, out += width, hidden += rank) {
    std::int64_t i = 0;
    for (; i + strip <= width; i += strip) {
      Vector<C> sum[4] = {};
      for (std::int64_t r = 0; r < rank; ++r) {
        const C* p = up + r * padded + i;
#pragma GCC unroll 4
        for (std::int64_t j = 0; j < 4; ++j) {
          sum[j] += hidden[r] * load_vector(p + j * lanes);
        }
      }
#pragma GCC unroll 4
      for (std::int64_t j = 0; j < 4; ++j) {
        const std::int64_t k = i + j * lanes;
        store_vector(out + k, load_vector(h + k) + alpha * sum[j]);
      }
    }
    for (; i < width; i += lanes) {
      Vector<C> sum = {};
      for (std::int64_t r = 0; r < rank; ++r) {
        sum += hidden[r] * load_vector(up + r * padded + i);
      }
      if (i + lanes <= width) {
        store_vector(out + i, load_vector(h + i) + alpha * sum);
      } else {
        const std::int64_t left = width - i;
        store_part(out + i, load_part(h + i, left) + alpha * sum, left);
      }
    }
  }
}

// to_hidden[row][0..R) = sum over the width of grad[row] * up[0..R).
template <std::int64_t R, typename T>
ESPER_INLINE void rows_to_hidden(const T* grad,
                                 const Compute<T>* up,
                                 std::int64_t padded,
                                 Compute<T>* to_hidden,
                                 std::int64_t rank,
                                 std::int64_t rows,
                                 std::int64_t width) {
  using C = Compute<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  for (std::int64_t row = 0; row < rows; ++row, grad += width, to_hidden += rank) {
    Vector<C> sum[R] = {};
    std::int64_t i = 0;
    for (; i + lanes <= width; i += lanes) {
      const Vector<C> g = load_vector(grad + i);
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < R; ++r) {
        sum[r] += g * load_vector(up + r * padded + i);
      }
    }
    if (i < width) {
      const Vector<C> g = load_part(grad + i, width - i);
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < R; ++r) {
        sum[r] += g * load_vector(up + r * padded + i);
      }
    }
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < R; ++r) {
      to_hidden[r] = sum_of<C>(sum[r]);
    }
  }
}

// to_up[0..R) += sum over the rows of hidden[row][0..R) * grad[row].
template <std::int64_t R, typename T>
ESPER_INLINE void rows_to_up(const T* grad,
                             const Compute<T>* hidden,
                             std::int64_t rank,
                             Compute<T>* to_up,
                             std::int64_t padded,
                             std::int64_t rows,
                             std::int64_t width) {
  using C = Compute<T>;
  constexpr std::int64_t lanes = kLanes<C>;
  std::int64_t i = 0;
  for (; i + 2 * lanes <= width; i += 2 * lanes) {
    Vector<C> first[R];
    Vector<C> second[R];
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < R; ++r) {
      first[r] = load_vector(to_up + r * padded + i);
      second[r] = load_vector(to_up + r * padded + i + lanes);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const T* p = grad + row * width + i;
      const Vector<C> left = load_vector(p);
      const Vector<C> right = load_vector(p + lanes);
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < R; ++r) {
        const C value = hidden[row * rank + r];
        first[r] += value * left;
        second[r] += value * right;
      }
    }
#pragma GCC unroll 8
    for (std::int64_t r = 0; r < R; ++r) {
      store_vector(to_up + r * padded + i, first[r]);
      store_vector(to_up + r * padded + i + lanes, second[r]);
    }
  }
  for (; i < width; i += lanes) {
    const std::int64_t left = width - i;
    for (std::int64_t row = 0; row < rows; ++row) {
      const T* p = grad + row * width + i;
      const Vector<C> g = left >= lanes ? load_vector(p) : load_part(p, left);
#pragma GCC unroll 8
      for (std::int64_t r = 0; r < R; ++r) {
        C* q = to_up + r * padded + i;
        store_vector(q, load_vector(q) + hidden[row * rank + r] * g);
      }
    }
  }
}

template <std::int64_t R, typename T>
void project_backward_ranks(const T* grad,
                            const Compute<T>* hidden,
                            const Compute<T>* up,
                            std::int64_t rank,
                            std::int64_t padded,
                            Compute<T>* to_hidden,
                            Compute<T>* to_up,
                            std::int64_t rows,
                            std::int64_t width) {
  rows_to_hidden<R>(grad, up, padded, to_hidden, rank, rows, width);
  rows_to_up<R>(grad, hidden, rank, to_up, padded, rows, width);
}

template <typename T>
void project_backward(const T* grad,
                      const Compute<T>* hidden,
                      const Compute<T>* up,
                      std::int64_t rank,
                      std::int64_t padded,
                      Compute<T>* to_hidden,
                      Compute<T>* to_up,
                      std::int64_t rows,
                      std::int64_t width) {
  // So few rows that the second use of the gradient finds it in the cache.
  constexpr std::int64_t block = 32;
  for (std::int64_t start = 0; start < rows; start += block) {
    const std::int64_t count = rows - start < block ? rows - start : block;
    const T* g = grad + start * width;
    const Compute<T>* from = hidden + start * rank;
    Compute<T>* to = to_hidden + start * rank;
    std::int64_t r = 0;
    for (; r + 8 <= rank; r += 8) {
      project_backward_ranks<8>(g, from + r, up + r * padded, rank, padded, to + r,
                                to_up + r * padded, count, width);
    }
    for (; r + 4 <= rank; r += 4) {
      project_backward_ranks<4>(g, from + r, up + r * padded, rank, padded, to + r,
                                to_up + r * padded, count, width);
    }
    for (; r < rank; ++r) {
      project_backward_ranks<1>(g, from + r, up + r * padded, rank, padded, to + r,
                                to_up + r * padded, count, width);
    }
  }
}

}  // namespace
