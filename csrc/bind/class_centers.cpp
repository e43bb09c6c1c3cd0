#include "../class_centers.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../distance.h"
#include "../parallel.h"
#include "../rows_by_class.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

int64_t group_grain(int64_t groups, int64_t n, int64_t d) {
  return std::max<int64_t>(1, (1 << 15) * groups / std::max<int64_t>(1, n * d));
}

void centers_of_classes(py::object feat, py::object labels, py::object centers, py::object counts, int threads) {
  const TensorView vx(feat, "feat"), vc(centers, "centers");
  const float* x = vx.data<float>({-1, -1});
  const int64_t n = vx.size(0), d = vx.size(1);
  float* out = vc.data<float>({-1, d});
  const int64_t k = vc.size(0);
  const int64_t* codes = TensorView(labels, "labels").data<int64_t>({n});
  int64_t* pc = TensorView(counts, "counts").data<int64_t>({k});
  py::gil_scoped_release release;
  const RowsByClass groups(codes, n, k);
  for (int64_t c = 0; c < k; ++c) pc[c] = groups.count(c);
  parallel_for(k, group_grain(k, n, d), threads, [&](int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; ++c) VIFAST_DISPATCH(mean_of_rows, x, d, groups.of(c), groups.count(c), out + c * d);
  });
}

// The center hinge goes to `loss`; or, where that is None, the gradients of both sets for `grad`, that of the loss, to theirs.
void hinge_of_centers(py::object raw, py::object purified, py::object labels, py::object modality, double margin, float offset,
                      py::object loss, py::object grad, py::object grad_raw, py::object grad_purified, int threads) {
  const TensorView vx(raw, "raw");
  const float* x = vx.data<float>({-1, -1});
  const int64_t n = vx.size(0), d = vx.size(1);
  const float* y = TensorView(purified, "purified").data<float>({n, d});
  const int64_t *pl = TensorView(labels, "labels").data<int64_t>({n}), *pm = TensorView(modality, "modality").data<int64_t>({n});
  const bool forward = !loss.is_none();
  float* out = forward ? TensorView(loss, "loss").data<float>({}) : nullptr;
  const double pull = forward ? 0.0 : *TensorView(grad, "grad").data<float>({});
  float* gx = forward ? nullptr : TensorView(grad_raw, "grad_raw").data<float>({n, d});
  float* gy = forward ? nullptr : TensorView(grad_purified, "grad_purified").data<float>({n, d});
  py::gil_scoped_release release;
  std::vector<int32_t> codes(n);
  encode_labels(pl, n, nullptr, 0, codes.data(), nullptr);
  for (int64_t i = 0; i < n; ++i) codes[i] = pm[i] == 0 || pm[i] == 1 ? 2 * codes[i] + static_cast<int32_t>(pm[i]) : -1;
  const RowsByClass groups(codes.data(), n, 2 * n);
  std::vector<int64_t> present;
  for (int64_t c = 0; c < 2 * n; c += 2) {
    if (groups.count(c) > 0 && groups.count(c + 1) > 0) present.push_back(c);
  }
  const int64_t found = static_cast<int64_t>(present.size());
  if (!forward) {
    std::fill_n(gx, n * d, 0.0f);
    std::fill_n(gy, n * d, 0.0f);
  }
  std::vector<double> terms(found);
  parallel_for(found, group_grain(found, 2 * n, d), threads, [&](int64_t p0, int64_t p1) {
    std::vector<float> before(d), after(d);
    for (int64_t p = p0; p < p1; ++p) {
      const int64_t v = present[p], i = v + 1, n_v = groups.count(v), n_i = groups.count(i);
      double d_before, d_after;
      VIFAST_DISPATCH(difference_of_means, x, d, groups.of(v), n_v, groups.of(i), n_i, offset, before.data(), &d_before);
      VIFAST_DISPATCH(difference_of_means, y, d, groups.of(v), n_v, groups.of(i), n_i, offset, after.data(), &d_after);
      const double term = d_after - d_before + margin;
      terms[p] = term < 0 ? 0 : term;  // NaN stays NaN
      if (forward || !(term > 0)) continue;
      const double share = pull / static_cast<double>(found);
      const double pull_x = d_before == 0 ? 0 : -share / d_before, pull_y = d_after == 0 ? 0 : share / d_after;
      VIFAST_DISPATCH(scatter_row, before.data(), d, pull_x / static_cast<double>(n_v), groups.of(v), n_v, gx);
      VIFAST_DISPATCH(scatter_row, before.data(), d, -pull_x / static_cast<double>(n_i), groups.of(i), n_i, gx);
      VIFAST_DISPATCH(scatter_row, after.data(), d, pull_y / static_cast<double>(n_v), groups.of(v), n_v, gy);
      VIFAST_DISPATCH(scatter_row, after.data(), d, -pull_y / static_cast<double>(n_i), groups.of(i), n_i, gy);
    }
  });
  if (!forward) return;
  double total = 0;
  for (double term : terms) total += term;
  *out = static_cast<float>(found > 0 ? total / static_cast<double>(found) : 0.0);
}

}  // namespace

void bind_class_centers(py::module_& m) {
  m.def("class_centers", &centers_of_classes, py::arg("feat"), py::arg("labels"), py::arg("centers"), py::arg("counts"), py::arg("threads"),
        "Mean row and number of rows of every class.");
  m.def("center_hinge", &hinge_of_centers, py::arg("raw"), py::arg("purified"), py::arg("labels"), py::arg("modality"), py::arg("margin"),
        py::arg("offset"), py::arg("loss"), py::arg("grad"), py::arg("grad_raw"), py::arg("grad_purified"), py::arg("threads"),
        "The center hinge, or its gradients.");
}

}  // namespace vifast
