#include "../prompt_consistency.h"

#include <algorithm>
#include <vector>

#include "../huge_pages.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

constexpr int64_t kPart = 1 << 15;  // elements of a partial sum; their order does not depend on the threads

// new, old: [n]; out: [].
void prompt_consistency(py::object prompts, py::object old, py::object out, int threads) {
  const TensorView view(prompts, "new");
  const float* a = view.data<float>({-1});
  const int64_t n = view.size(0), parts = (n + kPart - 1) / kPart;
  const float* b = TensorView(old, "old").data<float>({n});
  float* po = TensorView(out, "out").data<float>({});
  py::gil_scoped_release release;
  std::vector<double> sums(parts);
  parallel_for(parts, 1, threads, [&](int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p) {
      VIFAST_DISPATCH(absolute_difference, a + p * kPart, b + p * kPart, std::min(kPart, n - p * kPart), &sums[p]);
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *po = static_cast<float>(total / static_cast<double>(std::max<int64_t>(n, 1)));
}

// grad: []; grad_new: [n].
void prompt_consistency_backward(py::object grad, py::object prompts, py::object old, py::object grad_new, int threads) {
  const TensorView view(prompts, "new");
  const float *a = view.data<float>({-1}), *pg = TensorView(grad, "grad").data<float>({});
  const int64_t n = view.size(0);
  const float* b = TensorView(old, "old").data<float>({n});
  float* out = TensorView(grad_new, "grad_new").data<float>({n});
  const float scale = *pg / static_cast<float>(std::max<int64_t>(n, 1));
  py::gil_scoped_release release;
  prefer_huge_pages(out, n * 4);
  parallel_for(n, kPart, threads, [&](int64_t i0, int64_t i1) {
    VIFAST_DISPATCH(difference_sign, a + i0, b + i0, i1 - i0, scale, out + i0);
  });
}

}  // namespace

void bind_prompt_consistency(py::module_& m) {
  m.def("prompt_consistency", &prompt_consistency, py::arg("new"), py::arg("old"), py::arg("out"), py::arg("threads"),
        "Mean absolute difference, see csrc/prompt_consistency.h.");
  m.def("prompt_consistency_backward", &prompt_consistency_backward, py::arg("grad"), py::arg("new"), py::arg("old"), py::arg("grad_new"),
        py::arg("threads"), "Its gradient.");
}

}  // namespace vifast
