#include "../weighted_triplet.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../distance.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

constexpr int64_t kSaved = 7;  // rows of `saved`, in the order of WrtSaved

int64_t row_grain(int64_t cols) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, cols)); }
int64_t col_grain(int64_t rows) { return std::max<int64_t>(64, (1 << 13) / std::max<int64_t>(1, rows)); }

WrtSaved saved_at(float* base, int64_t n, int64_t first) {
  return {base + first,         base + n + first,     base + 2 * n + first, base + 3 * n + first,
          base + 4 * n + first, base + 5 * n + first, base + 6 * n + first};
}

struct SoftmaxStore {  // memory of a WrtSide of n anchors
  std::vector<double> m, z, t;
  SoftmaxStore(int64_t n, double start) : m(n, start), z(n, 0.0), t(n, 0.0) {}
  WrtSide at(int64_t first) { return {m.data() + first, z.data() + first, t.data() + first}; }
};

// What both directions share: a tile of products of mean-free rows becomes one of distances, and knows its labels.
class Tiles {
 public:
  // centered: None where the tiles are distances already.
  Tiles(py::object feat, py::object centered, py::object labels, int threads)
      : feat_(feat), n_(TensorView(feat, "feat").size(0)), d_(TensorView(feat, "feat").size(1)), codes_(n_) {
    x_ = TensorView(feat, "feat").data<float>({n_, d_});
    encode_labels(TensorView(labels, "labels").data<int64_t>({n_}), n_, nullptr, 0, codes_.data(), nullptr);
    if (centered.is_none()) return;
    sq_.resize(n_);
    const float* xc = TensorView(centered, "centered").data<float>({n_, d_});
    py::gil_scoped_release release;
    square_norms(xc, n_, d_, sq_.data(), threads);
  }

 protected:
  struct Tile {
    float* data;
    int64_t rows, cols;
    bool diagonal;
    const int32_t *row_labels, *col_labels;
  };

  Tile view(py::handle object, int64_t row0, int64_t col0) const {
    const TensorView t(object, "tile");
    float* data = t.data<float>({-1, -1});
    const int64_t rows = t.size(0), cols = t.size(1);
    if (row0 + rows > n_ || col0 + cols > n_) throw py::value_error("tile: reaches beyond the rows");
    return {data, rows, cols, row0 == col0, codes_.data() + row0, codes_.data() + col0};
  }

  // Distances in place; one on the diagonal is made symmetric, so that (i, j) and (j, i) have the same bits.
  void to_distances(const Tile& t, int64_t row0, int64_t col0, int threads) const {
    if (sq_.empty()) return;
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(products_to_distances, t.data, t.cols, r0, r1, x_ + row0 * d_, x_ + col0 * d_, d_, sq_.data() + row0,
                      sq_.data() + col0, kWrtFloor, true);
    });
    if (t.diagonal) VIFAST_DISPATCH(mirror_upper, t.data, t.rows, 0, t.rows);
  }

  py::object feat_;  // keeps x_ alive
  const float* x_;
  int64_t n_, d_;
  std::vector<int32_t> codes_;
  std::vector<float> sq_;
};

class WrtForward : public Tiles {
 public:
  WrtForward(py::object feat, py::object centered, py::object labels, bool stable, int threads)
      : Tiles(feat, centered, labels, threads), stable_(stable), pos_(n_, -INFINITY), neg_(n_, stable ? -INFINITY : 0.0) {}

  void fold(py::object tile, int64_t row0, int64_t col0, int threads) {
    const Tile t = view(tile, row0, col0);
    py::gil_scoped_release release;
    to_distances(t, row0, col0, threads);
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(wrt_fold_rows, t.data, t.cols, r0, r1, t.row_labels, t.col_labels, stable_, pos_.at(row0), neg_.at(row0));
    });
    if (t.diagonal) return;
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(wrt_fold_cols, t.data, t.rows, t.cols, c0, c1, t.row_labels, t.col_labels, stable_, pos_.at(col0), neg_.at(col0));
    });
  }

  // Loss of each anchor and what its gradient needs.
  void finish(py::object loss, py::object saved) const {
    float* pl = TensorView(loss, "loss").data<float>({n_});
    const WrtSaved out = saved_at(TensorView(saved, "saved").data<float>({kSaved, n_}), n_, 0);
    const double eps = stable_ ? 0.0 : kWrtEps;
    for (int64_t i = 0; i < n_; ++i) {
      const double zp = pos_.z[i] + eps, zn = neg_.z[i] + eps;
      const bool idle = zn == 0;  // stable without negatives: a softmax over nothing, the anchor is left out
      const double mean_p = pos_.t[i] / zp, mean_n = idle ? 0.0 : neg_.t[i] / zn, gap = mean_p - mean_n;
      const double tail = std::exp(-std::fabs(gap));
      const double loss_i = gap != gap ? gap : std::max(gap, 0.0) + std::log1p(tail);
      pl[i] = idle ? 0.0f : static_cast<float>(loss_i);
      out.slope[i] = idle ? 0.0f : static_cast<float>((gap >= 0 ? 1.0 : tail) / (1.0 + tail));
      out.pos_max[i] = static_cast<float>(pos_.m[i]);
      out.pos_inv_z[i] = static_cast<float>(1.0 / zp);
      out.pos_mean[i] = static_cast<float>(mean_p);
      out.neg_min[i] = idle ? 0.0f : static_cast<float>(-neg_.m[i]);
      out.neg_inv_z[i] = idle ? 0.0f : static_cast<float>(1.0 / zn);
      out.neg_mean[i] = static_cast<float>(mean_n);
    }
  }

 private:
  bool stable_;
  SoftmaxStore pos_, neg_;
};

class WrtBackward : public Tiles {
 public:
  // grad: of the loss of each anchor; saved: as WrtForward left it.
  WrtBackward(py::object feat, py::object centered, py::object labels, bool stable, py::object grad, py::object saved, int threads)
      : Tiles(feat, centered, labels, threads), stable_(stable), sums_(n_, 0.0) {
    const float* ps = TensorView(saved, "saved").data<float>({kSaved, n_});
    const float* pg = TensorView(grad, "grad").data<float>({n_});
    saved_.assign(ps, ps + kSaved * n_);
    for (int64_t i = 0; i < n_; ++i) saved_[i] *= pg[i];
  }

  // A tile becomes the weights w of the gradient w @ centered, in place: -s_ij, and the sum of its row on the diagonal.
  // Tiles on the diagonal come last, when the sums are complete.
  void weigh(py::object tile, int64_t row0, int64_t col0, int threads) {
    const Tile t = view(tile, row0, col0);
    py::gil_scoped_release release;
    to_distances(t, row0, col0, threads);
    const WrtSaved rows = saved_at(saved_.data(), n_, row0), cols = saved_at(saved_.data(), n_, col0);
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(wrt_backward_rows, t.data, t.cols, r0, r1, t.row_labels, t.col_labels, stable_, rows, cols, sums_.data() + row0);
    });
    if (t.diagonal) {
      for (int64_t i = 0; i < t.rows; ++i) t.data[i * t.cols + i] = static_cast<float>(-sums_[row0 + i]);
      return;
    }
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(wrt_column_sums, t.data, t.rows, t.cols, c0, c1, sums_.data() + col0);
    });
  }

 private:
  bool stable_;
  std::vector<float> saved_;
  std::vector<double> sums_;
};

}  // namespace

void bind_weighted_triplet(py::module_& m) {
  py::class_<WrtForward>(m, "WrtForward", "Online softmaxes of the weighted triplet loss, see csrc/weighted_triplet.h.")
      .def(py::init<py::object, py::object, py::object, bool, int>(), py::arg("feat"), py::arg("centered"), py::arg("labels"),
           py::arg("stable"), py::arg("threads"))
      .def("fold", &WrtForward::fold, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("threads"))
      .def("finish", &WrtForward::finish, py::arg("loss"), py::arg("saved"));
  py::class_<WrtBackward>(m, "WrtBackward", "Weights of differences of its gradient.")
      .def(py::init<py::object, py::object, py::object, bool, py::object, py::object, int>(), py::arg("feat"), py::arg("centered"),
           py::arg("labels"), py::arg("stable"), py::arg("grad"), py::arg("saved"), py::arg("threads"))
      .def("weigh", &WrtBackward::weigh, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("threads"));
}

}  // namespace vifast
