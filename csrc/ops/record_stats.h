// record_stats: five figures of a whole tensor, written into a row of a table. Shared checks.
//
// The columns of the table are the rows of slot_stats. The table is float64 and contiguous, so
// that its memory can be a ring that others read (lattice/telemetry_ring.h).
#pragma once

#include "ops/common/check.h"
#include "ops/slot_stats.h"

namespace esper {

// Elements that are reduced together, in the compute type of the tensor. Fixed, so that the result
// depends neither on the thread count nor on the instruction set.
inline constexpr std::int64_t kFlatBlock = 4096;

inline void check_record_stats(const Tensor& x, const Tensor& table, std::int64_t row) {
  constexpr const char* op = "record_stats";
  check_dtype(op, "x", x);
  if (table.dim() != 2 || table.size(1) != kStatsRows ||
      table.scalar_type() != ScalarType::Double || !table.is_contiguous()) {
    fail(op, "got table of shape " + shape_of(table) + " and dtype " +
                 torch::headeronly::toString(table.scalar_type()) +
                 ", wanted a contiguous one of shape [rows, " + std::to_string(kStatsRows) +
                 "] and dtype Double");
  }
  if (table.device() != x.device()) {
    fail(op, "got table on " + device_of(table) + ", wanted " + device_of(x) + " (that of x)");
  }
  if (row < 0 || row >= table.size(0)) {
    fail(op,
         "got row " + std::to_string(row) + ", wanted 0 to " + std::to_string(table.size(0) - 1));
  }
}

}  // namespace esper
