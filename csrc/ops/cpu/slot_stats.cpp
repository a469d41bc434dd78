#include "ops/slot_stats.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <vector>

#include "ops/common/merge.h"
#include "ops/cpu/kernels.h"

namespace esper::cpu {
namespace {

// Elements of one feature in one partial result: fixed, so that the result does not depend on
// the thread count. Rows are fewer: each may lie on a page of its own.
constexpr std::int64_t kRowsPerBlock = 256;
constexpr std::int64_t kElementsPerBlock = 4096;
constexpr std::int64_t kGrainElements = 32768;

struct Partials {
  std::int64_t features;
  std::vector<Partial> values;  // [block][feature]

  Partial* at(std::int64_t block, std::int64_t feature) {
    return values.data() + block * features + feature;
  }
};

// Features lie side by side: tiles of them, a block of rows at a time.
template <typename T>
Partials reduce_rows(const T* x, const StatsShape& shape) {
  const std::int64_t tiles = (shape.features + kFeatureTile - 1) / kFeatureTile;
  const std::int64_t blocks = (shape.outer + kRowsPerBlock - 1) / kRowsPerBlock;
  Partials partials{shape.features,
                    std::vector<Partial>(static_cast<std::size_t>(blocks * shape.features))};
  const auto& kernel = kernels_for<T>().stats;
  const std::int64_t elements =
      std::min(kRowsPerBlock, shape.outer) * std::min(kFeatureTile, shape.features);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / elements);
  torch::stable::parallel_for(0, tiles * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t block = task / tiles;
      const std::int64_t first = (task % tiles) * kFeatureTile;
      const std::int64_t row = block * kRowsPerBlock;
      kernel.rows(x + row * shape.features + first, std::min(kRowsPerBlock, shape.outer - row),
                  shape.features, std::min(kFeatureTile, shape.features - first),
                  partials.at(block, first));
    }
  });
  return partials;
}

// Each feature owns runs of adjacent elements.
template <typename T>
Partials reduce_runs(const T* x, const StatsShape& shape) {
  const std::int64_t runs = std::max<std::int64_t>(1, kElementsPerBlock / shape.inner);
  const std::int64_t blocks = (shape.outer + runs - 1) / runs;
  Partials partials{shape.features,
                    std::vector<Partial>(static_cast<std::size_t>(blocks * shape.features))};
  const auto& kernel = kernels_for<T>().stats;
  const std::int64_t stride = shape.features * shape.inner;
  const std::int64_t elements = std::min(runs, shape.outer) * shape.inner;
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / elements);
  torch::stable::parallel_for(
      0, blocks * shape.features, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t task = begin; task < end; ++task) {
          const std::int64_t run = (task / shape.features) * runs;
          const std::int64_t feature = task % shape.features;
          kernel.runs(x + run * stride + feature * shape.inner, std::min(runs, shape.outer - run),
                      stride, shape.inner, partials.at(task / shape.features, feature));
        }
      });
  return partials;
}

template <typename T>
void stats(const Tensor& x, const StatsShape& shape, Tensor& out) {
  const auto* data = static_cast<const T*>(x.const_data_ptr());
  Partials partials{shape.features, {}};
  if (shape.outer * shape.inner * shape.features > 0) {
    partials = shape.inner == 1 ? reduce_rows(data, shape) : reduce_runs(data, shape);
  }
  const std::int64_t blocks =
      shape.features == 0 ? 0 : static_cast<std::int64_t>(partials.values.size()) / shape.features;
  auto* out_data = static_cast<double*>(out.mutable_data_ptr());
  for (std::int64_t feature = 0; feature < shape.features; ++feature) {
    Partial total{};
    for (std::int64_t block = 0; block < blocks; ++block) {
      merge(total, *partials.at(block, feature));
    }
    write_stats(total, shape.outer * shape.inner, out_data + feature, shape.features);
  }
}

Tensor slot_stats(const Tensor& x, std::int64_t axis) {
  const StatsShape shape = check_slot_stats(x, axis);
  const Tensor dense = torch::stable::contiguous(x);
  const std::array<std::int64_t, 2> size = {kStatsRows, shape.features};
  Tensor out = torch::stable::new_empty(x, {size.data(), size.size()}, ScalarType::Double);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      stats<float>(dense, shape, out);
      break;
    case ScalarType::BFloat16:
      stats<bfloat16>(dense, shape, out);
      break;
    default:
      stats<double>(dense, shape, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(esper, CPU, m) {
  m.impl("slot_stats", TORCH_BOX(&slot_stats));
}

}  // namespace esper::cpu
