#include "../weighted_triplet.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../distance.h"
#include "../packed_rows.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "distance_tiles.h"
#include "rows.h"

namespace vifast {

namespace {

constexpr int64_t kSaved = 7;  // rows of `saved`, in the order of WrtSaved

WrtSaved saved_at(float* base, int64_t n, int64_t first) {
  return {base + first,         base + n + first,     base + 2 * n + first, base + 3 * n + first,
          base + 4 * n + first, base + 5 * n + first, base + 6 * n + first};
}

struct SoftmaxStore {  // memory of a WrtSide of n anchors
  std::vector<double> m, z, t;
  SoftmaxStore(int64_t n, double start) : m(n, start), z(n, 0.0), t(n, 0.0) {}
  WrtSide at(int64_t first) { return {m.data() + first, z.data() + first, t.data() + first}; }
};

std::vector<int32_t> codes_of(const py::object& labels, int64_t n) {
  std::vector<int32_t> codes(n);
  encode_labels(TensorView(labels, "labels").data<int64_t>({n}), n, nullptr, 0, codes.data(), nullptr);
  return codes;
}

// Losses of all anchors and what their gradient needs. mean [D] becomes the mean row; dist, [N, N] for at most kSmall rows or
// None, the distances.
void forward(py::object feat, py::object labels, bool stable, py::object loss, py::object saved, py::object mean, py::object dist,
             int threads) {
  const TensorView vx(feat, "feat");
  const float* x = vx.data<float>({-1, -1});
  const int64_t n = vx.size(0), d = vx.size(1);
  const std::vector<int32_t> codes = codes_of(labels, n);
  float *pl = TensorView(loss, "loss").data<float>({n}), *pm = TensorView(mean, "mean").data<float>({d});
  const WrtSaved out = saved_at(TensorView(saved, "saved").data<float>({kSaved, n}), n, 0);
  float* kept = dist.is_none() ? nullptr : TensorView(dist, "dist").data<float>({n, n});
  if (kept != nullptr && n > kSmall) throw py::value_error("dist: expected None beyond " + std::to_string(kSmall) + " rows");
  py::gil_scoped_release release;

  DistanceTiles tiles(x, n, nullptr, 0, d, common_mean(x, n, nullptr, 0, d, threads), kept == nullptr, threads);
  std::copy(tiles.origin().begin(), tiles.origin().end(), pm);
  SoftmaxStore pos(n, -INFINITY), neg(n, stable ? -INFINITY : 0.0);
  auto fold = [&](Tile t, float* tile) {
    const bool diagonal = t.row0 == t.col0;
    tiles.fill(t, kWrtFloor, true, tile, threads);
    const int32_t *rows = codes.data() + t.row0, *cols = codes.data() + t.col0;
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(wrt_fold_rows, tile, t.cols, r0, r1, rows, cols, stable, pos.at(t.row0), neg.at(t.row0));
    });
    if (diagonal) return;
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(wrt_fold_cols, tile, t.rows, t.cols, c0, c1, rows, cols, stable, pos.at(t.col0), neg.at(t.col0));
    });
  };
  if (kept != nullptr) {
    fold({0, n, 0, n}, kept);
  } else {
    const std::unique_ptr<float[]> tile(new float[std::min(n, kTile) * std::min(n, kTile)]);
    each_tile(n, n, true, [&](Tile t) { fold(t, tile.get()); });
  }
  const double eps = stable ? 0.0 : kWrtEps;
  for (int64_t i = 0; i < n; ++i) {
    const double zp = pos.z[i] + eps, zn = neg.z[i] + eps;
    const bool idle = zn == 0;  // stable without negatives: a softmax over nothing, the anchor is left out
    const double mean_p = pos.t[i] / zp, mean_n = idle ? 0.0 : neg.t[i] / zn, gap = mean_p - mean_n;
    const double tail = std::exp(-std::fabs(gap));
    const double loss_i = gap != gap ? gap : std::max(gap, 0.0) + std::log1p(tail);
    pl[i] = idle ? 0.0f : static_cast<float>(loss_i);
    out.slope[i] = idle ? 0.0f : static_cast<float>((gap >= 0 ? 1.0 : tail) / (1.0 + tail));
    out.pos_max[i] = static_cast<float>(pos.m[i]);
    out.pos_inv_z[i] = static_cast<float>(1.0 / zp);
    out.pos_mean[i] = static_cast<float>(mean_p);
    out.neg_min[i] = idle ? 0.0f : static_cast<float>(-neg.m[i]);
    out.neg_inv_z[i] = idle ? 0.0f : static_cast<float>(1.0 / zn);
    out.neg_mean[i] = static_cast<float>(mean_n);
  }
}

// The weights w of the gradient w @ (feat - mean), tile by tile: -s_ij, and the sum of its row on the diagonal.
class WrtBackward {
 public:
  // grad: of the loss of each anchor; saved, mean: as the forward left them; mean None where it kept the distances, which the one
  // tile then holds.
  WrtBackward(py::object feat, py::object mean, py::object labels, bool stable, py::object grad, py::object saved, int threads)
      : feat_(feat), n_(TensorView(feat, "feat").size(0)), codes_(codes_of(labels, n_)), stable_(stable), sums_(n_, 0.0) {
    const float* ps = TensorView(saved, "saved").data<float>({kSaved, n_});
    const float* pg = TensorView(grad, "grad").data<float>({n_});
    saved_.assign(ps, ps + kSaved * n_);
    for (int64_t i = 0; i < n_; ++i) saved_[i] *= pg[i];
    if (mean.is_none()) return;
    const TensorView vx(feat, "feat");
    const int64_t d = vx.size(1);
    const float *x = vx.data<float>({n_, d}), *pm = TensorView(mean, "mean").data<float>({d});
    py::gil_scoped_release release;
    tiles_ = std::make_unique<DistanceTiles>(x, n_, nullptr, 0, d, std::vector<float>(pm, pm + d), true, threads);
  }

  // Tiles of the upper triangle, those on the diagonal last, when the sums are complete.
  void weigh(py::object tile, int64_t row0, int64_t col0, int threads) {
    const TensorView view(tile, "tile");
    float* w = view.data<float>({-1, -1});
    const Tile t{row0, view.size(0), col0, view.size(1)};
    const bool diagonal = row0 == col0;
    if (row0 + t.rows > n_ || col0 + t.cols > n_ || row0 % kPanel != 0 || col0 % kPanel != 0) {
      throw py::value_error("tile: expected rows and columns of feat, beginning at multiples of " + std::to_string(kPanel));
    }
    py::gil_scoped_release release;
    if (tiles_ != nullptr) tiles_->fill(t, kWrtFloor, true, w, threads);
    const WrtSaved rows = saved_at(saved_.data(), n_, row0), cols = saved_at(saved_.data(), n_, col0);
    const int32_t *row_codes = codes_.data() + row0, *col_codes = codes_.data() + col0;
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(wrt_backward_rows, w, t.cols, r0, r1, row_codes, col_codes, stable_, rows, cols, sums_.data() + row0);
    });
    if (diagonal) {
      for (int64_t i = 0; i < t.rows; ++i) w[i * t.cols + i] = static_cast<float>(-sums_[row0 + i]);
      return;
    }
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(add_column_sums, w, t.rows, t.cols, c0, c1, sums_.data() + col0);
    });
  }

 private:
  py::object feat_;  // keeps the rows alive
  int64_t n_;
  std::vector<int32_t> codes_;
  bool stable_;
  std::vector<float> saved_;
  std::vector<double> sums_;
  std::unique_ptr<DistanceTiles> tiles_;
};

}  // namespace

void bind_weighted_triplet(py::module_& m) {
  m.def("wrt_forward", &forward, py::arg("feat"), py::arg("labels"), py::arg("stable"), py::arg("loss"), py::arg("saved"), py::arg("mean"),
        py::arg("dist"), py::arg("threads"), "Weighted triplet loss of every anchor, see csrc/weighted_triplet.h.");
  py::class_<WrtBackward>(m, "WrtBackward", "Weights of differences of its gradient.")
      .def(py::init<py::object, py::object, py::object, bool, py::object, py::object, int>(), py::arg("feat"), py::arg("mean"),
           py::arg("labels"), py::arg("stable"), py::arg("grad"), py::arg("saved"), py::arg("threads"))
      .def("weigh", &WrtBackward::weigh, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("threads"));
}

}  // namespace vifast
