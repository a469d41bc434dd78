#include "ops/record_stats.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "ops/common/merge.h"
#include "ops/cpu/kernels.h"

namespace esper::cpu {
namespace {

// Tensors of fewer blocks are not worth waking threads for.
constexpr std::int64_t kSerialBlocks = 64;

template <typename T>
Partial reduce(const T* x, std::int64_t n) {
  const auto& kernel = kernels_for<T>().stats;
  const std::int64_t blocks = (n + kFlatBlock - 1) / kFlatBlock;
  const auto block = [&](std::int64_t index, Partial* out) {
    const std::int64_t first = index * kFlatBlock;
    kernel.flat(x + first, std::min(kFlatBlock, n - first), out);
  };
  Partial total{};
  if (blocks < kSerialBlocks) {
    for (std::int64_t index = 0; index < blocks; ++index) {
      Partial part{};
      block(index, &part);
      merge(total, part);
    }
    return total;
  }
  std::vector<Partial> parts(static_cast<std::size_t>(blocks));
  torch::stable::parallel_for(0, blocks, kSerialBlocks / 2,
                              [&](std::int64_t begin, std::int64_t end) {
                                for (std::int64_t index = begin; index < end; ++index) {
                                  block(index, parts.data() + index);
                                }
                              });
  for (const Partial& part : parts) {
    merge(total, part);
  }
  return total;
}

void record(const Tensor& x, double* row) {
  const Tensor dense = torch::stable::contiguous(x);
  const std::int64_t n = dense.numel();
  Partial total{};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      total = reduce(static_cast<const float*>(dense.const_data_ptr()), n);
      break;
    case ScalarType::BFloat16:
      total = reduce(static_cast<const bfloat16*>(dense.const_data_ptr()), n);
      break;
    default:
      total = reduce(static_cast<const double*>(dense.const_data_ptr()), n);
  }
  write_stats(total, n, row, 1);
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
