#include "../center_loss.h"

#include <algorithm>
#include <vector>

#include "../parallel.h"
#include "../rows_by_class.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

constexpr int64_t kShare = 1 << 15;  // elements that are worth a thread

struct RowsAndCenters {
  const float *x, *centers;
  const int64_t* codes;
  int64_t n, d, k;

  RowsAndCenters(const py::object& feat, const py::object& labels, const py::object& rows_of_classes) {
    const TensorView vx(feat, "feat"), vc(rows_of_classes, "centers");
    x = vx.data<float>({-1, -1});
    n = vx.size(0);
    d = vx.size(1);
    centers = vc.data<float>({-1, d});
    k = vc.size(0);
    codes = TensorView(labels, "labels").data<int64_t>({n});
  }
};

void center_loss_forward(py::object feat, py::object labels, py::object centers, double share, py::object loss, int threads) {
  const RowsAndCenters in(feat, labels, centers);
  float* out = TensorView(loss, "loss").data<float>({});
  py::gil_scoped_release release;
  std::vector<double> square(in.n);
  parallel_for(in.n, 1 + kShare / (in.d + 1), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(center_distances, in.x, in.codes, in.centers, in.k, in.d, r0, r1, square.data());
  });
  double total = 0;
  for (double value : square) total += value;
  *out = static_cast<float>(total * share);
}

// For `grad`, that of the loss; either gradient may be None. Threads take columns: all rows may be of one class.
void center_loss_backward(py::object grad, py::object feat, py::object labels, py::object centers, double share, py::object grad_feat,
                          py::object grad_centers, int threads) {
  const RowsAndCenters in(feat, labels, centers);
  const float weight = static_cast<float>(2 * share * *TensorView(grad, "grad").data<float>({}));
  const int64_t n = in.n, d = in.d, k = in.k;
  float* to_x = grad_feat.is_none() ? nullptr : TensorView(grad_feat, "grad_feat").data<float>({n, d});
  float* to_centers = grad_centers.is_none() ? nullptr : TensorView(grad_centers, "grad_centers").data<float>({k, d});
  py::gil_scoped_release release;
  const RowsByClass groups(in.codes, n, k);
  parallel_for(d, 1 + kShare / (n + k + 1), threads, [&](int64_t c0, int64_t c1) {
    for (int64_t c = 0; c < k; ++c) {
      float* to_center = to_centers == nullptr ? nullptr : to_centers + c * d;
      if (groups.count(c) == 0) {  // of many classes few have rows
        if (to_center != nullptr) std::fill(to_center + c0, to_center + c1, 0.0f);
        continue;
      }
      VIFAST_DISPATCH(center_pull, in.x, d, in.centers + c * d, groups.of(c), groups.count(c), weight, c0, c1, to_x, to_center);
    }
    for (int64_t i = 0; to_x != nullptr && i < n; ++i) {
      if (in.codes[i] < 0 || in.codes[i] >= k) std::fill(to_x + i * d + c0, to_x + i * d + c1, 0.0f);
    }
  });
}

}  // namespace

void bind_center_loss(py::module_& m) {
  m.def("center_loss", &center_loss_forward, py::arg("feat"), py::arg("labels"), py::arg("centers"), py::arg("share"), py::arg("loss"),
        py::arg("threads"), "Sum of squared distances to the own center, times share.");
  m.def("center_loss_backward", &center_loss_backward, py::arg("grad"), py::arg("feat"), py::arg("labels"), py::arg("centers"),
        py::arg("share"), py::arg("grad_feat"), py::arg("grad_centers"), py::arg("threads"), "Its gradients.");
}

}  // namespace vifast
