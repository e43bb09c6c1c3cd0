#include "../unit_rows.h"

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

// feat, out: [N, D].
void unit_rows_of(py::object feat, py::object out, int threads) {
  const TensorView view(feat, "feat");
  const float* x = view.data<float>({-1, -1});
  const int64_t n = view.size(0), d = view.size(1);
  float* to = TensorView(out, "out").data<float>({n, d});
  py::gil_scoped_release release;
  parallel_for(n, row_grain(d), threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(unit_rows, x, d, r0, r1, to); });
}

// grad [N, D]: dL/d(unit rows); out: dL/dfeat, perhaps the same tensor.
void unit_backward(py::object grad, py::object feat, py::object out, int threads) {
  const TensorView view(feat, "feat");
  const float* x = view.data<float>({-1, -1});
  const int64_t n = view.size(0), d = view.size(1);
  const float* g = TensorView(grad, "grad").data<float>({n, d});
  float* to = TensorView(out, "out").data<float>({n, d});
  py::gil_scoped_release release;
  parallel_for(n, row_grain(d), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(unit_backward_rows, g, x, d, r0, r1, to);
  });
}

}  // namespace

void bind_unit_rows(py::module_& m) {
  m.def("unit_rows", &unit_rows_of, py::arg("feat"), py::arg("out"), py::arg("threads"), "Rows divided by their norm.");
  m.def("unit_backward", &unit_backward, py::arg("grad"), py::arg("feat"), py::arg("out"), py::arg("threads"),
        "The gradient of rows divided by their norm.");
}

}  // namespace vifast
