// One table of kernels; compiled once per instruction set with ESPER_ISA naming it.
#include "ops/cpu/isa/blend.h"
#include "ops/cpu/isa/stats.h"
#include "ops/cpu/kernels.h"

#define ESPER_JOIN_(a, b) a##b
#define ESPER_JOIN(a, b) ESPER_JOIN_(a, b)
#define ESPER_TEXT_(a) #a
#define ESPER_TEXT(a) ESPER_TEXT_(a)

namespace esper::cpu {

extern const KernelTable ESPER_JOIN(kTable_, ESPER_ISA);
const KernelTable ESPER_JOIN(kTable_, ESPER_ISA) = {
    ESPER_TEXT(ESPER_ISA),
    {blend<float>, blend_backward<float>},
    {blend<double>, blend_backward<double>},
    {blend<bfloat16>, blend_backward<bfloat16>},
    {stats_rows<float>, stats_runs<float>},
    {stats_rows<double>, stats_runs<double>},
    {stats_rows<bfloat16>, stats_runs<bfloat16>},
};

}  // namespace esper::cpu
