// The inner loops of the CPU operators against plain loops in double, on arrays without a byte to
// spare, for one instruction set (ESPER_CPU_ISA).
#include "ops/cpu/kernels.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "tests/check.h"

using namespace esper;
using namespace esper::cpu;

namespace {

std::mt19937 source(0);

double number(float value) {
  return value;
}
double number(double value) {
  return value;
}
double number(bfloat16 value) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value.bits) << 16);
}

template <typename T>
T element(double value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const auto bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(value));
    return {static_cast<std::uint16_t>(bits >> 16)};
  } else {
    return static_cast<T>(value);
  }
}

// Of exactly `n` elements, so that a sanitizer sees a step beyond them.
template <typename T>
std::vector<T> draw(std::int64_t n) {
  std::normal_distribution<double> normal;
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& value : values) {
    value = element<T>(normal(source));
  }
  values.shrink_to_fit();
  return values;
}

template <typename T>
bool close(double got, double wanted) {
  const double rounding = std::is_same_v<T, double>  ? 1e-12
                          : std::is_same_v<T, float> ? 1e-4
                                                     : 0.05;
  return std::fabs(got - wanted) <= rounding * (1.0 + std::fabs(wanted));
}

template <typename T>
void blends() {
  for (std::int64_t n = 0; n < 70; ++n) {
    const auto h = draw<T>(n);
    const auto delta = draw<T>(n);
    auto out = draw<T>(n);
    kernels_for<T>().blend.blend(h.data(), delta.data(), 0.5, out.data(), n);
    double dot = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      CHECK(close<T>(number(out[i]), number(h[i]) + 0.5 * number(delta[i])));
      dot += number(h[i]) * number(delta[i]);
    }
    CHECK(
        close<T>(kernels_for<T>().blend.backward(h.data(), delta.data(), 0.5, out.data(), n), dot));
  }
}

template <typename T>
void statistics() {
  for (std::int64_t width : {1, 15, 16, 17, 100}) {
    for (std::int64_t rows : {1, 2, 9, 33}) {
      const auto x = draw<T>(rows * width);
      std::vector<Partial> out(static_cast<std::size_t>(width));
      kernels_for<T>().stats.rows(x.data(), rows, width, width, out.data());
      double total = 0.0;
      for (const Partial& partial : out) {
        CHECK(partial.finite == static_cast<double>(rows));
        total += partial.mean * partial.finite;
      }
      Partial all{};
      kernels_for<T>().stats.runs(x.data(), rows, width, width, &all);
      CHECK(close<double>(all.mean * all.finite, total));
      kernels_for<T>().stats.flat(x.data(), rows * width, &all);
      CHECK(close<T>(all.mean * all.finite, total));
    }
  }
}

struct Sizes {
  std::int64_t rows;
  std::int64_t width;
  std::int64_t rank;
};

// All the arrays of one projection, and what a plain loop makes of them.
template <typename T>
struct Problem {
  using C = Compute<T>;
  Sizes n;
  std::int64_t padded;
  std::vector<T> hidden;
  std::vector<T> h;
  std::vector<C> up;
  std::vector<C> bias;

  explicit Problem(const Sizes& n)
      : n(n), hidden(draw<T>(n.rows * n.rank)), h(draw<T>(n.rows * n.width)) {
    constexpr auto lanes = static_cast<std::int64_t>(64 / sizeof(C));
    padded = (n.width + lanes - 1) / lanes * lanes;
    up = draw<C>(n.rank * padded);
    bias = draw<C>(padded);
    for (std::int64_t i = n.width; i < padded; ++i) {
      bias[static_cast<std::size_t>(i)] = 0;
      for (std::int64_t r = 0; r < n.rank; ++r) {
        up[static_cast<std::size_t>(r * padded + i)] = 0;
      }
    }
  }

  Projection<T> given(bool with_bias) const {
    return {hidden.data(), up.data(), with_bias ? bias.data() : nullptr,
            n.rank,        n.rank,    padded,
            n.width,       n.rows,    static_cast<C>(0.5)};
  }
  double unit(std::int64_t row, std::int64_t r) const {
    return number(hidden[static_cast<std::size_t>(row * n.rank + r)]);
  }
  double weight(std::int64_t r, std::int64_t i) const {
    return number(up[static_cast<std::size_t>(r * padded + i)]);
  }
  double outer(std::int64_t row, std::int64_t i) const {
    return number(h[static_cast<std::size_t>(row * n.width + i)]);
  }
};

template <typename T>
void check_forward(const Problem<T>& problem, bool with_bias) {
  const Sizes& n = problem.n;
  auto out = draw<T>(n.rows * n.width);
  project_kernels<T>().project(problem.given(with_bias), problem.h.data(), out.data());
  for (std::int64_t row = 0; row < n.rows; ++row) {
    for (std::int64_t i = 0; i < n.width; ++i) {
      double sum = with_bias ? number(problem.bias[static_cast<std::size_t>(i)]) : 0.0;
      for (std::int64_t r = 0; r < n.rank; ++r) {
        sum += problem.unit(row, r) * problem.weight(r, i);
      }
      const double got = number(out[static_cast<std::size_t>(row * n.width + i)]);
      CHECK(close<T>(got, problem.outer(row, i) + 0.5 * sum));
    }
  }
}

template <typename T>
void check_backward(const Problem<T>& problem) {
  using C = Compute<T>;
  const Sizes& n = problem.n;
  auto to_hidden = draw<T>(n.rows * n.rank);
  std::vector<C> to_up(problem.up.size());
  std::vector<C> to_bias(problem.bias.size());
  const double to_alpha = project_kernels<T>().backward(
      problem.given(true), problem.h.data(), to_hidden.data(), to_up.data(), to_bias.data());
  double alpha = 0.0;
  for (std::int64_t r = 0; r < n.rank; ++r) {
    for (std::int64_t row = 0; row < n.rows; ++row) {
      double sum = 0.0;
      for (std::int64_t i = 0; i < n.width; ++i) {
        sum += problem.outer(row, i) * problem.weight(r, i);
      }
      alpha += sum * problem.unit(row, r);
      const double got = number(to_hidden[static_cast<std::size_t>(row * n.rank + r)]);
      CHECK(close<T>(got, 0.5 * sum));
    }
    for (std::int64_t i = 0; i < n.width; ++i) {
      double sum = 0.0;
      for (std::int64_t row = 0; row < n.rows; ++row) {
        sum += problem.outer(row, i) * problem.unit(row, r);
      }
      CHECK(close<T>(to_up[static_cast<std::size_t>(r * problem.padded + i)], sum));
    }
  }
  CHECK(close<T>(to_alpha, alpha));
}

template <typename T>
void projections() {
  for (std::int64_t rows : {0, 1, 2, 31, 33, 70}) {
    for (std::int64_t width : {0, 1, 7, 16, 63, 64, 65, 130}) {
      for (std::int64_t rank : {0, 1, 7, 8, 9, 17}) {
        const Problem<T> problem({rows, width, rank});
        check_forward(problem, false);
        check_forward(problem, true);
        check_backward(problem);
      }
    }
  }
}

// Memory of `n` zeros of which only the pages that are written to take room.
template <typename T>
class Sparse {
 public:
  explicit Sparse(std::int64_t n) : bytes_(static_cast<std::size_t>(n) * sizeof(T)) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    data = static_cast<T*>(p);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() { munmap(data, bytes_); }

  T* data;

 private:
  std::size_t bytes_;
};

// Elements lie more than 2^32 apart: an index of 32 bits would find zeros, or nothing.
template <typename T>
void far_apart() {
  constexpr std::int64_t stride = (std::int64_t{1} << 32) + 64;
  const Sparse<T> x(2 * stride + 64);
  for (std::int64_t row = 0; row < 3; ++row) {
    for (std::int64_t i = 0; i < 4; ++i) {
      x.data[row * stride + i] = element<T>(static_cast<double>(row + 1));
    }
  }
  Partial rows[4];
  kernels_for<T>().stats.rows(x.data, 3, stride, 4, rows);
  Partial runs{};
  kernels_for<T>().stats.runs(x.data, 3, stride, 4, &runs);
  for (const Partial& partial : {rows[0], rows[3], runs}) {
    CHECK(partial.mean == 2.0 && partial.abs_max == 3.0 && partial.zeros == 0.0);
  }

  using C = Compute<T>;
  constexpr auto lanes = static_cast<std::int64_t>(64 / sizeof(C));
  const std::vector<C> up(static_cast<std::size_t>(lanes), static_cast<C>(1));
  const auto h = std::vector<T>(6, element<T>(0.0));
  auto out = h;
  const Projection<T> p = {x.data, up.data(), nullptr, 1, stride, lanes, 2, 3, static_cast<C>(1)};
  project_kernels<T>().project(p, h.data(), out.data());
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(number(out[i]) == static_cast<double>(i / 2 + 1));
  }
  const Sparse<T> to_hidden(2 * stride + 64);
  std::vector<C> to_up(static_cast<std::size_t>(lanes));
  const std::vector<T> grad(6, element<T>(1.0));
  CHECK(project_kernels<T>().backward(p, grad.data(), to_hidden.data, to_up.data(), nullptr) > 0.0);
  CHECK(number(to_hidden.data[2 * stride]) == 2.0);
  CHECK(number(to_up[0]) == 6.0);
}

template <typename T>
void all() {
  blends<T>();
  statistics<T>();
  projections<T>();
  far_apart<T>();
}

// The table is chosen once, by whichever thread comes first; kernels share no state.
void threads() {
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 4; ++worker) {
    workers.emplace_back([] {
      const float h[] = {1.0F, 2.0F, 3.0F};
      float out[3];
      for (int i = 0; i < 1000; ++i) {
        kernels_for<float>().blend.blend(h, h, 1.0, out, 3);
        CHECK(out[2] == 6.0F);
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
}

}  // namespace

int main() {
  threads();
  all<float>();
  all<double>();
  all<bfloat16>();
  std::printf("kernels, %s: all tests passed\n", kernels().isa);
}
