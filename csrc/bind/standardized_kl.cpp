#include "../standardized_kl.h"

#include <algorithm>
#include <vector>

#include <pybind11/stl.h>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

// Powers of e^(z / 12) where at least two temperatures can share it.
std::vector<Temperature> plan(const std::vector<double>& temperatures, const std::vector<double>& weights) {
  auto power = [](double t) { return t == 12 || t == 6 || t == 4 || t == 3 || t == 2 ? static_cast<int32_t>(12 / t) : 0; };
  const bool shared = std::count_if(temperatures.begin(), temperatures.end(), power) > 1;
  std::vector<Temperature> out;
  for (size_t t = 0; t < temperatures.size(); ++t) {
    const double temperature = temperatures[t];
    out.push_back({static_cast<float>(1 / temperature), shared ? power(temperature) : 0, weights.at(t) * temperature});
  }
  return out;
}

// scale: [N, 1], [N, T] or None; slope: [N, D], or None where no gradient is wanted.
void skl_forward(py::object student, py::object teacher, py::object scale, const std::vector<double>& temperatures,
                 const std::vector<double>& weights, bool standardize, int64_t ddof, double eps, py::object loss, py::object slope,
                 int threads) {
  const TensorView vs(student, "student");
  const int64_t n = vs.size(0), d = vs.size(1);
  const std::vector<Temperature> steps = plan(temperatures, weights);
  SklRows x{vs.data<float>({-1, -1}), TensorView(teacher, "teacher").data<float>({n, d}), d, nullptr, 0, steps.data(),
            static_cast<int64_t>(steps.size()), false, standardize, ddof, eps};
  x.shared = std::any_of(steps.begin(), steps.end(), [](const Temperature& t) { return t.power != 0; });
  if (!scale.is_none()) {
    const TensorView view(scale, "scale");
    x.scale = view.data<float>({n, -1});
    x.scale_cols = view.size(1);
    if (x.scale_cols != 1 && x.scale_cols != x.n_temperatures) throw py::value_error("scale: expected one column, or one per temperature");
  }
  float* pl = TensorView(loss, "loss").data<float>({n});
  float* ps = slope.is_none() ? nullptr : TensorView(slope, "slope").data<float>({n, d});
  py::gil_scoped_release release;
  parallel_for(n, row_share(d * x.n_temperatures), threads, [&](int64_t r0, int64_t r1) {
    std::vector<float> work(kSklWork * d);
    VIFAST_DISPATCH(standardized_kl_rows, x, r0, r1, work.data(), pl, ps);
  });
}

}  // namespace

void bind_standardized_kl(py::module_& m) {
  m.def("standardized_kl", &skl_forward, py::arg("student"), py::arg("teacher"), py::arg("scale"), py::arg("temperatures"),
        py::arg("weights"), py::arg("standardize"), py::arg("ddof"), py::arg("eps"), py::arg("loss"), py::arg("slope"), py::arg("threads"),
        "Divergence of every row and its slope, see csrc/standardized_kl.h.");
}

}  // namespace vifast
