#include "../percentile_mask.h"

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

void mask_rows(py::object confidence, double q, bool high, py::object mask) {
  const TensorView view(confidence, "confidence");
  const float* c = view.data<float>({-1});
  const int64_t n = view.size(0);
  float* out = TensorView(mask, "mask").data<float>({n});
  py::gil_scoped_release release;
  percentile_mask(c, n, q, high, out);
}

void confidence_of_rows(py::object logits, py::object out, int threads) {
  const TensorView view(logits, "logits");
  const float* x = view.data<float>({-1, -1});
  const int64_t n = view.size(0), cols = view.size(1);
  float* to = TensorView(out, "out").data<float>({n});
  py::gil_scoped_release release;
  parallel_for(n, row_share(cols), threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(softmax_confidence_rows, x, cols, r0, r1, to); });
}

}  // namespace

void bind_percentile_mask(py::module_& m) {
  m.def("percentile_mask", &mask_rows, py::arg("confidence"), py::arg("q"), py::arg("high"), py::arg("mask"),
        "Rows on one side of a percentile, see csrc/percentile_mask.h.");
  m.def("softmax_confidence", &confidence_of_rows, py::arg("logits"), py::arg("out"), py::arg("threads"),
        "Largest probability of every row.");
}

}  // namespace vifast
