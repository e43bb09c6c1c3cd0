#include "../weighted_triplet.h"

#include <algorithm>
#include <cmath>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

// float64 [6, n]: maximum, sum of weights and weighted sum of the positives, then of the negatives.
constexpr int64_t kStats = 6;
// float32 [7, n], in the order of WrtSaved.
constexpr int64_t kSaved = 7;

struct Stats {
  WrtSide pos, neg;
  Stats(double* base, int64_t n, int64_t first)
      : pos{base + first, base + n + first, base + 2 * n + first},
        neg{base + 3 * n + first, base + 4 * n + first, base + 5 * n + first} {}
};

WrtSaved saved_at(float* base, int64_t n, int64_t first) {
  return {base + first,         base + n + first,     base + 2 * n + first, base + 3 * n + first,
          base + 4 * n + first, base + 5 * n + first, base + 6 * n + first};
}

int64_t row_grain(int64_t cols) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, cols)); }
int64_t col_grain(int64_t rows) { return std::max<int64_t>(64, (1 << 13) / std::max<int64_t>(1, rows)); }

struct Tile {
  float* data;
  int64_t rows, cols, n, row0, col0;
  const int32_t *row_labels, *col_labels;
  Tile(py::handle tile, int64_t row0_, int64_t col0_, py::handle labels) : row0(row0_), col0(col0_) {
    TensorView t(tile, "tile"), l(labels, "labels");
    data = t.data<float>({-1, -1});
    rows = t.size(0);
    cols = t.size(1);
    const int32_t* pl = l.data<int32_t>({-1});
    n = l.size(0);
    if (row0 + rows > n || col0 + cols > n) throw py::value_error("tile: reaches beyond labels");
    row_labels = pl + row0;
    col_labels = pl + col0;
  }
  bool diagonal() const { return row0 == col0; }
};

void begin(py::object stats, bool stable) {
  TensorView s(stats, "stats");
  double* p = s.data<double>({kStats, -1});
  const int64_t n = s.size(1);
  const Stats st(p, n, 0);
  std::fill(p, p + kStats * n, 0.0);
  std::fill(st.pos.m, st.pos.m + n, -INFINITY);
  if (stable) std::fill(st.neg.m, st.neg.m + n, -INFINITY);
}

// tile: distances of rows row0.. to rows col0.. of one set. A tile on the diagonal is made symmetric first; one off it
// is folded both ways.
void fold(py::object tile, int64_t row0, int64_t col0, py::object labels, bool stable, py::object stats, int threads) {
  const Tile t(tile, row0, col0, labels);
  double* p = TensorView(stats, "stats").data<double>({kStats, t.n});
  const Stats rows(p, t.n, row0), cols(p, t.n, col0);
  py::gil_scoped_release release;
  if (t.diagonal()) VIFAST_DISPATCH(mirror_upper, t.data, t.rows, 0, t.rows);
  parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(wrt_fold_rows, t.data, t.cols, r0, r1, t.row_labels, t.col_labels, stable, rows.pos, rows.neg);
  });
  if (t.diagonal()) return;
  parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(wrt_fold_cols, t.data, t.rows, t.cols, c0, c1, t.row_labels, t.col_labels, stable, cols.pos, cols.neg);
  });
}

// Loss of each anchor and what its gradient needs.
void finish(py::object stats, bool stable, py::object loss, py::object saved) {
  TensorView s(stats, "stats"), l(loss, "loss"), v(saved, "saved");
  double* p = s.data<double>({kStats, -1});
  const int64_t n = s.size(1);
  float* pl = l.data<float>({n});
  const WrtSaved out = saved_at(v.data<float>({kSaved, n}), n, 0);
  const Stats st(p, n, 0);
  const double eps = stable ? 0.0 : kWrtEps;
  for (int64_t i = 0; i < n; ++i) {
    const double zp = st.pos.z[i] + eps, zn = st.neg.z[i] + eps;
    const double mean_p = st.pos.t[i] / zp, mean_n = zn == 0 ? 0.0 : st.neg.t[i] / zn;
    const double gap = mean_p - mean_n;
    const bool idle = stable && zn == 0;  // a true softmax over no negatives does not exist: the anchor is left out
    pl[i] = idle ? 0.0f : static_cast<float>(std::max(gap, 0.0) + std::log1p(std::exp(-std::fabs(gap))));
    if (gap != gap) pl[i] = NAN;
    out.slope[i] = idle ? 0.0f : static_cast<float>(1.0 / (1.0 + std::exp(-gap)));
    out.pos_max[i] = static_cast<float>(st.pos.m[i]);
    out.pos_inv_z[i] = static_cast<float>(1.0 / zp);
    out.pos_mean[i] = static_cast<float>(mean_p);
    out.neg_min[i] = static_cast<float>(-st.neg.m[i]);
    out.neg_inv_z[i] = idle ? 0.0f : static_cast<float>(1.0 / zn);
    out.neg_mean[i] = static_cast<float>(mean_n);
    if (idle) out.neg_min[i] = 0.0f;
  }
}

// Turns a tile of distances into the weights of differences, in place, and adds their sums to `sums` (float64 [n]).
// saved: as finish left it, with slope already multiplied by the incoming gradient.
void backward(py::object tile, int64_t row0, int64_t col0, py::object labels, bool stable, py::object saved, py::object sums,
              int threads) {
  const Tile t(tile, row0, col0, labels);
  float* pv = TensorView(saved, "saved").data<float>({kSaved, t.n});
  double* ps = TensorView(sums, "sums").data<double>({t.n});
  const WrtSaved rows = saved_at(pv, t.n, row0), cols = saved_at(pv, t.n, col0);
  py::gil_scoped_release release;
  if (t.diagonal()) VIFAST_DISPATCH(mirror_upper, t.data, t.rows, 0, t.rows);
  parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(wrt_backward_rows, t.data, t.cols, r0, r1, t.row_labels, t.col_labels, stable, rows, cols, ps + row0);
  });
  if (t.diagonal()) return;
  parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(wrt_column_sums, t.data, t.rows, t.cols, c0, c1, ps + col0);
  });
}

}  // namespace

void bind_weighted_triplet(py::module_& m) {
  m.attr("WRT_STATS") = kStats;
  m.attr("WRT_SAVED") = kSaved;
  m.def("wrt_begin", &begin, py::arg("stats"), py::arg("stable"), "Resets the running softmax.");
  m.def("wrt_fold", &fold, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("labels"), py::arg("stable"), py::arg("stats"),
        py::arg("threads"), "Folds a tile of distances into the running softmax.");
  m.def("wrt_finish", &finish, py::arg("stats"), py::arg("stable"), py::arg("loss"), py::arg("saved"), "Losses and saved values.");
  m.def("wrt_backward", &backward, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("labels"), py::arg("stable"),
        py::arg("saved"), py::arg("sums"), py::arg("threads"), "A tile of distances to weights of differences, in place.");
}

}  // namespace vifast
