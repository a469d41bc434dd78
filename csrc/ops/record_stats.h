// record_stats: five figures of each of some tensors, written into rows of a table. Shared checks.
//
// The columns of the table are the rows of slot_stats. Many tensors share one call, because the
// call costs more than a small tensor does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/common/check.h"
#include "ops/common/merge.h"
#include "ops/slot_stats.h"

namespace esper {

// Elements that are reduced together, in the compute type of the tensor, and how many such blocks
// of a tensor are looked at: large tensors are sampled, so that a row has a price that is known.
inline constexpr std::int64_t kFlatBlock = 4096;
inline constexpr std::int64_t kMaxBlocks = 4;

// The blocks of `n` elements that are looked at, evenly spaced.
struct FlatBlocks {
  std::int64_t n;

  ESPER_HOST_DEVICE std::int64_t all() const { return (n + kFlatBlock - 1) / kFlatBlock; }
  ESPER_HOST_DEVICE std::int64_t count() const { return all() < kMaxBlocks ? all() : kMaxBlocks; }
  ESPER_HOST_DEVICE std::int64_t first(std::int64_t i) const {
    return i * all() / count() * kFlatBlock;
  }
  ESPER_HOST_DEVICE std::int64_t size(std::int64_t i) const {
    return n - first(i) < kFlatBlock ? n - first(i) : kFlatBlock;
  }
};

inline void check_record_stats(const std::vector<Tensor>& xs,
                               const Tensor& table,
                               const std::vector<std::int64_t>& rows) {
  constexpr const char* op = "record_stats";
  if (table.dim() != 2 || table.size(1) != kStatsRows ||
      table.scalar_type() != ScalarType::Double || !table.is_contiguous()) {
    fail(op, "got table of shape " + shape_of(table) + " and dtype " +
                 torch::headeronly::toString(table.scalar_type()) +
                 ", wanted a contiguous one of shape [rows, " + std::to_string(kStatsRows) +
                 "] and dtype Double");
  }
  if (xs.size() != rows.size()) {
    fail(op, "got " + std::to_string(xs.size()) + " tensors and " + std::to_string(rows.size()) +
                 " rows, wanted a row for each tensor");
  }
  for (std::size_t i = 0; i < xs.size(); ++i) {
    check_dtype(op, "a tensor", xs[i]);
    if (xs[i].device() != table.device()) {
      fail(op, "got a tensor on " + device_of(xs[i]) + ", wanted " + device_of(table) +
                   " (that of table)");
    }
    if (rows[i] < 0 || rows[i] >= table.size(0)) {
      fail(op, "got row " + std::to_string(rows[i]) + ", wanted 0 to " +
                   std::to_string(table.size(0) - 1));
    }
  }
}

}  // namespace esper
