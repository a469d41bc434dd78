#include "ops/record_stats.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "ops/cpu/kernels.h"

namespace esper::cpu {
namespace {

template <typename T>
Partial reduce(const T* x, const FlatBlocks& blocks) {
  const auto& kernel = kernels_for<T>().stats;
  Partial total{};
  for (std::int64_t i = 0; i < blocks.count(); ++i) {
    Partial part{};
    kernel.flat(x + blocks.first(i), blocks.size(i), &part);
    merge(total, part);
  }
  return total;
}

void record(const Tensor& x, double* row) {
  const Tensor dense = torch::stable::contiguous(x);
  const FlatBlocks blocks{dense.numel()};
  Partial total{};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      total = reduce(static_cast<const float*>(dense.const_data_ptr()), blocks);
      break;
    case ScalarType::BFloat16:
      total = reduce(static_cast<const bfloat16*>(dense.const_data_ptr()), blocks);
      break;
    default:
      total = reduce(static_cast<const double*>(dense.const_data_ptr()), blocks);
  }
  const auto looked_at = static_cast<std::int64_t>(total.finite + total.non_finite);
  write_stats(total, looked_at, row, 1);
}

void record_stats(std::vector<Tensor> xs, Tensor table, std::vector<std::int64_t> rows) {
  check_record_stats(xs, table, rows);
  auto* out = static_cast<double*>(table.mutable_data_ptr());
  for (std::size_t i = 0; i < xs.size(); ++i) {
    record(xs[i], out + rows[i] * kStatsRows);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CPU, m) {
  m.impl("record_stats", TORCH_BOX(&record_stats));
}

}  // namespace esper::cpu
