// The one block of operator schemas. Backends register their kernels beside it; autograd and
// fakes are registered from Python (esper/kasmina/ops.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(esper, m) {
  m.def("graft_blend(Tensor h, Tensor delta, Tensor alpha) -> Tensor");
  m.def("graft_blend_backward(Tensor grad, Tensor delta, Tensor alpha) -> (Tensor, Tensor)");
  m.def("graft_project(Tensor h, Tensor hidden, Tensor up, Tensor? bias, Tensor alpha) -> Tensor");
  m.def(
      "graft_project_backward(Tensor grad, Tensor hidden, Tensor up, Tensor? bias, Tensor alpha) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("slot_stats(Tensor x, int axis) -> Tensor");
  m.def("record_stats(Tensor[] xs, Tensor(a!) table, int[] rows) -> ()");
}
