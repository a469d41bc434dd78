#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/operators.h"

namespace esper::autograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct GraftBlend : torch::autograd::Function<GraftBlend> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& h,
                        const Tensor& delta,
                        const Tensor& alpha) {
    // Only the gradient of alpha needs delta: without it the seed's output can be freed.
    ctx->save_for_backward({alpha.requires_grad() ? delta : Tensor(), alpha});
    return blend(h, delta, alpha);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    auto [to_delta, to_alpha] = blend_backward(grads[0], saved[0], saved[1]);
    return {grads[0], to_delta, to_alpha};
  }
};

Tensor graft_blend(const Tensor& h, const Tensor& delta, const Tensor& alpha) {
  return learns(h, delta, alpha) ? GraftBlend::apply(h, delta, alpha) : blend(h, delta, alpha);
}

}  // namespace
}  // namespace esper::autograd

TORCH_LIBRARY_FRAGMENT(esper_autograd, m) {
  m.def("graft_blend(Tensor h, Tensor delta, Tensor alpha) -> Tensor",
        &esper::autograd::graft_blend);
}
