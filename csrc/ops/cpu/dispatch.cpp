// Chooses the kernel table at run time, so that one binary serves every machine.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ops/cpu/kernels.h"

namespace esper::cpu {

extern const KernelTable kTable_baseline;
#ifdef ESPER_X86
extern const KernelTable kTable_avx2;
extern const KernelTable kTable_avx512;
#endif

namespace {

struct Candidate {
  const KernelTable* table;
  bool runs;
};

const KernelTable& choose() {
  const Candidate candidates[] = {
#ifdef ESPER_X86
      {&kTable_avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vl")},
      {&kTable_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&kTable_baseline, true},
  };
  const char* variable = std::getenv("ESPER_CPU_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
  for (const Candidate& candidate : candidates) {
    if (candidate.runs && (wanted.empty() || wanted == candidate.table->isa)) {
      return *candidate.table;
    }
  }
  throw std::runtime_error("esper: got ESPER_CPU_ISA=" + wanted +
                           ", wanted baseline, avx2 or avx512, of those that this machine has; "
                           "unset it to take the best");
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

}  // namespace esper::cpu

// For records of the platform and for tests; read through ctypes.
extern "C" __attribute__((visibility("default"))) const char* esper_cpu_isa() {
  return esper::cpu::kernels().isa;
}
