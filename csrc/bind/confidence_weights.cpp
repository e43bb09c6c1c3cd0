#include "../confidence_weights.h"

#include <vector>

#include <pybind11/stl.h>

#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

void weights_of_confidence(py::object confidence, py::object allowed, py::object before, int64_t first, int32_t rule, double level,
                           bool high, const std::vector<double>& fixed, const std::vector<double>& masked, bool rowwise,
                           bool by_kept, py::object weights, py::object kept, py::object theta) {
  const TensorView view(confidence, "confidence");
  const float* c = view.data<float>({-1});
  const int64_t n = view.size(0), n_t = static_cast<int64_t>(fixed.size()) / 2;
  if (first < 0 || first > n) throw py::value_error("first: expected a number of rows");
  if (fixed.size() != masked.size() || fixed.size() % 2 != 0) throw py::value_error("fixed, masked: expected one even length");
  if (rule < 0 || rule > static_cast<int32_t>(MaskRule::none)) throw py::value_error("rule: expected 0 to 3");
  WeightPlan plan{static_cast<MaskRule>(rule), level, high, rowwise, by_kept, n_t, fixed.data(), masked.data(), 0.0f};
  if (plan.rule == MaskRule::ema) plan.before = *TensorView(before, "before").data<float>({});
  const float* rows = allowed.is_none() ? nullptr : TensorView(allowed, "allowed").data<float>({n});
  float* out = TensorView(weights, "weights").data<float>({n, n_t});
  float *share = TensorView(kept, "kept").data<float>({}), *after = TensorView(theta, "theta").data<float>({});
  py::gil_scoped_release release;
  std::vector<float> mask(n);
  confidence_weights(c, rows, n, first, plan, mask.data(), out, share, after);
}

}  // namespace

void bind_confidence_weights(py::module_& m) {
  m.def("confidence_weights", &weights_of_confidence, py::arg("confidence"), py::arg("allowed"), py::arg("before"),
        py::arg("first"), py::arg("rule"), py::arg("level"), py::arg("high"), py::arg("fixed"), py::arg("masked"),
        py::arg("rowwise"), py::arg("by_kept"), py::arg("weights"), py::arg("kept"), py::arg("theta"),
        "Factors of rows and temperatures, see csrc/confidence_weights.h.");
}

}  // namespace vifast
