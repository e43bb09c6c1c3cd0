#include "../decoupled_kl.h"

#include <vector>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

// slope: [N, K], or None where no gradient is wanted.
void decoupled_forward(py::object student, py::object teacher, py::object labels, double alpha, double beta, double temperature,
                       double share, py::object loss, py::object slope, int threads) {
  const TensorView vs(student, "student");
  const int64_t n = vs.size(0), k = vs.size(1);
  const DecoupledRows x{vs.data<float>({-1, -1}), TensorView(teacher, "teacher").data<float>({n, k}),
                        TensorView(labels, "labels").data<int64_t>({n}), k, alpha, beta, temperature, share};
  float* pl = TensorView(loss, "loss").data<float>({n});
  float* ps = slope.is_none() ? nullptr : TensorView(slope, "slope").data<float>({n, k});
  py::gil_scoped_release release;
  parallel_for(n, row_share(k), threads, [&](int64_t r0, int64_t r1) {
    std::vector<float> work(kDecoupledWork * k);
    VIFAST_DISPATCH(decoupled_kl_rows, x, r0, r1, work.data(), pl, ps);
  });
}

}  // namespace

void bind_decoupled_kl(py::module_& m) {
  m.def("decoupled_kl", &decoupled_forward, py::arg("student"), py::arg("teacher"), py::arg("labels"), py::arg("alpha"), py::arg("beta"),
        py::arg("temperature"), py::arg("share"), py::arg("loss"), py::arg("slope"), py::arg("threads"),
        "Divergence of every row and its slope, see csrc/decoupled_kl.h.");
}

}  // namespace vifast
