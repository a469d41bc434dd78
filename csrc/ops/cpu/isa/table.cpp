// One table of kernels; compiled once per instruction set with ESPER_ISA naming it.
#include "ops/cpu/isa/blend.h"
#include "ops/cpu/isa/flat.h"
#include "ops/cpu/isa/names.h"
#include "ops/cpu/isa/stats.h"
#include "ops/cpu/kernels.h"

namespace esper::cpu {
namespace {

template <typename T>
constexpr Kernels<T> kernels_of = {
    {blend<T>, blend_backward<T>},
    {stats_rows<T>, stats_runs<T>, stats_flat<T>},
};

}  // namespace

extern const ProductTable ESPER_JOIN(kProducts_, ESPER_ISA);
extern const KernelTable ESPER_JOIN(kTable_, ESPER_ISA);
const KernelTable ESPER_JOIN(kTable_, ESPER_ISA) = {
    ESPER_TEXT(ESPER_ISA), &ESPER_JOIN(kProducts_, ESPER_ISA),
    kernels_of<float>,     kernels_of<double>,
    kernels_of<bfloat16>,
};

}  // namespace esper::cpu
