// Kernels that are matrix products; compiled once per instruction set, with contraction.
#include "ops/cpu/isa/names.h"
#include "ops/cpu/isa/project.h"
#include "ops/cpu/kernels.h"

namespace esper::cpu {

extern const ProductTable ESPER_JOIN(kProducts_, ESPER_ISA);
const ProductTable ESPER_JOIN(kProducts_, ESPER_ISA) = {
    {project<float>, project_backward<float>},
    {project<double>, project_backward<double>},
    {project<bfloat16>, project_backward<bfloat16>},
};

}  // namespace esper::cpu
