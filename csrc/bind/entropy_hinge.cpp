#include "../entropy_hinge.h"

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

HingeSaved hinge_saved(const py::object& saved, int64_t n) {
  double* base = TensorView(saved, "saved").data<double>({5, n});
  return {base, base + n, base + 2 * n, base + 3 * n, base + 4 * n};
}

void hinge_forward(py::object raw, py::object purified, double margin, py::object loss, py::object saved, int threads) {
  const TensorView va(raw, "raw");
  const float* a = va.data<float>({-1, -1});
  const int64_t n = va.size(0), cols = va.size(1);
  const float* b = TensorView(purified, "purified").data<float>({n, cols});
  float* pl = TensorView(loss, "loss").data<float>({n});
  const HingeSaved out = hinge_saved(saved, n);
  py::gil_scoped_release release;
  parallel_for(n, row_share(cols), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(entropy_hinge_rows, a, b, cols, margin, r0, r1, pl, out); });
}

void hinge_backward(py::object grad, py::object saved, py::object raw, py::object purified, py::object grad_raw, py::object grad_purified,
                    int threads) {
  const TensorView va(raw, "raw");
  const float* a = va.data<float>({-1, -1});
  const int64_t n = va.size(0), cols = va.size(1);
  const float *b = TensorView(purified, "purified").data<float>({n, cols}), *pg = TensorView(grad, "grad").data<float>({n});
  const HingeSaved in = hinge_saved(saved, n);
  float* pa = TensorView(grad_raw, "grad_raw").data<float>({n, cols});
  float* pb = TensorView(grad_purified, "grad_purified").data<float>({n, cols});
  py::gil_scoped_release release;
  parallel_for(n, row_share(cols), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(entropy_hinge_backward_rows, a, b, cols, pg, in, r0, r1, pa, pb); });
}

}  // namespace

void bind_entropy_hinge(py::module_& m) {
  m.def("entropy_hinge_forward", &hinge_forward, py::arg("raw"), py::arg("purified"), py::arg("margin"), py::arg("loss"), py::arg("saved"),
        py::arg("threads"), "Hinge of every row, see csrc/entropy_hinge.h.");
  m.def("entropy_hinge_backward", &hinge_backward, py::arg("grad"), py::arg("saved"), py::arg("raw"), py::arg("purified"),
        py::arg("grad_raw"), py::arg("grad_purified"), py::arg("threads"), "Its gradient.");
}

}  // namespace vifast
