#include "../symmetric_kl.h"

#include <algorithm>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

LogitPairs logit_pairs(const py::object& a, const py::object& b, int64_t rows) {
  const TensorView va(a, "a");
  const int64_t n = va.size(0), cols = va.size(1);
  if (rows <= 0 || n % rows != 0 || n * cols == 0) throw py::value_error("rows: expected a divisor of the rows of a");
  return {va.data<float>({-1, -1}), TensorView(b, "b").data<float>({n, cols}), rows, n / rows, cols};
}

KlSaved kl_saved(const py::object& saved, int64_t rows) {
  double* base = TensorView(saved, "saved").data<double>({4, rows});
  return {base, base + rows, base + 2 * rows, base + 3 * rows};
}

void kl_forward(py::object a, py::object b, int64_t rows, py::object loss, py::object saved, int threads) {
  const LogitPairs x = logit_pairs(a, b, rows);
  float* pl = TensorView(loss, "loss").data<float>({rows});
  const KlSaved out = kl_saved(saved, rows);
  py::gil_scoped_release release;
  parallel_for(rows, row_share(x.groups * x.cols), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(symmetric_kl_rows, x, r0, r1, pl, out); });
}

void kl_backward(py::object grad, py::object saved, py::object a, py::object b, int64_t rows, py::object grad_a, py::object grad_b,
                 int threads) {
  const LogitPairs x = logit_pairs(a, b, rows);
  const int64_t n = x.rows * x.groups;
  const float* pg = TensorView(grad, "grad").data<float>({rows});
  const KlSaved in = kl_saved(saved, rows);
  float *pa = TensorView(grad_a, "grad_a").data<float>({n, x.cols}), *pb = TensorView(grad_b, "grad_b").data<float>({n, x.cols});
  py::gil_scoped_release release;
  parallel_for(rows, row_share(x.groups * x.cols), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(symmetric_kl_backward_rows, x, pg, in, r0, r1, pa, pb); });
}

}  // namespace

void bind_symmetric_kl(py::module_& m) {
  m.def("symmetric_kl_forward", &kl_forward, py::arg("a"), py::arg("b"), py::arg("rows"), py::arg("loss"), py::arg("saved"),
        py::arg("threads"), "Divergence of every row in both directions, see csrc/symmetric_kl.h.");
  m.def("symmetric_kl_backward", &kl_backward, py::arg("grad"), py::arg("saved"), py::arg("a"), py::arg("b"), py::arg("rows"),
        py::arg("grad_a"), py::arg("grad_b"), py::arg("threads"), "Its gradient.");
}

}  // namespace vifast
