#include "../graph_alignment.h"

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

constexpr int64_t kGraphSaved = 6;  // rows of `saved`, in the order of GraphSaved without grad

GraphSaved graph_saved_at(const double* grad, const double* base, int64_t n, int64_t first) {
  return {grad + first,
          base + first,
          base + n + first,
          base + 2 * n + first,
          base + 3 * n + first,
          base + 4 * n + first,
          base + 5 * n + first};
}

// Tiles of the distances within a set; see DistanceTiles for pack.
DistanceTiles graph_of(const float* x, int64_t n, int64_t d, bool pack, int threads) {
  return DistanceTiles(x, n, nullptr, 0, d, common_mean(x, n, nullptr, 0, d, threads), pack, threads);
}

// Divergences of all rows and what their gradient needs. dist_a, dist_b: [N, N] for at most kSmall rows or None.
void graph_forward(py::object a, py::object b, bool root, double scale, double floor, bool diagonal, bool symmetric, py::object loss,
                   py::object saved, py::object dist_a, py::object dist_b, int threads) {
  const TensorView va(a, "a"), vb(b, "b");
  const float* pa = va.data<float>({-1, -1});
  const int64_t n = va.size(0);
  const float* pb = vb.data<float>({n, -1});
  const int64_t d = va.size(1), e = vb.size(1);
  float* pl = TensorView(loss, "loss").data<float>({n});
  double* out = TensorView(saved, "saved").data<double>({kGraphSaved, n});
  float* kept_a = dist_a.is_none() ? nullptr : TensorView(dist_a, "dist_a").data<float>({n, n});
  float* kept_b = dist_b.is_none() ? nullptr : TensorView(dist_b, "dist_b").data<float>({n, n});
  if ((kept_a == nullptr) != (kept_b == nullptr) || (kept_a != nullptr && n > kSmall)) {
    throw py::value_error("dist: expected both or none, and None beyond " + std::to_string(kSmall) + " rows");
  }
  const GraphKind kind{root, scale, static_cast<float>(floor)};
  py::gil_scoped_release release;

  DistanceTiles u = graph_of(pa, n, d, kept_a == nullptr, threads), v = graph_of(pb, n, e, kept_b == nullptr, threads);
  std::vector<double> state(kGraphSaved * n, 0.0);
  auto side = [&](int64_t first_row, int64_t first) {
    double* base = state.data() + first_row * n + first;
    return GraphSide{base, base + n, base + 2 * n};
  };
  std::fill_n(side(0, 0).m, n, -INFINITY);
  std::fill_n(side(3, 0).m, n, -INFINITY);
  auto fold = [&](Tile t, float* tile_u, float* tile_v) {
    u.fill(t, kind.floor, kind.root, tile_u, threads);
    v.fill(t, kind.floor, kind.root, tile_v, threads);
    const bool own = t.row0 == t.col0;
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(graph_fold_rows, tile_u, tile_v, t.cols, r0, r1, own && !diagonal, scale, side(0, t.row0), side(3, t.row0));
    });
    if (own) return;
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(graph_fold_cols, tile_u, tile_v, t.rows, t.cols, c0, c1, scale, side(0, t.col0), side(3, t.col0));
    });
  };
  if (kept_a != nullptr) {
    if (n > 0) fold({0, n, 0, n}, kept_a, kept_b);
  } else {
    const std::unique_ptr<float[]> tiles(new float[2 * kTile * kTile]);
    each_tile(n, n, true, [&](Tile t) { fold(t, tiles.get(), tiles.get() + kTile * kTile); });
  }
  const GraphSide p = side(0, 0), q = side(3, 0);
  for (int64_t i = 0; i < n; ++i) {
    const bool empty = p.z[i] == 0;  // a row without columns
    const double u_mean = empty ? 0.0 : p.t[i] / p.z[i], v_mean = empty ? 0.0 : q.t[i] / q.z[i];
    const double shift = empty ? 0.0 : (q.m[i] - p.m[i]) + std::log(q.z[i] / p.z[i]);
    pl[i] = static_cast<float>(symmetric ? v_mean - u_mean : v_mean - shift);
    const double values[kGraphSaved] = {empty ? 0.0 : p.m[i], empty ? 0.0 : 1 / p.z[i], u_mean,
                                        empty ? 0.0 : q.m[i], empty ? 0.0 : 1 / q.z[i], v_mean};
    for (int64_t k = 0; k < kGraphSaved; ++k) out[k * n + i] = values[k];
  }
}

// The weights w of the gradients w @ (rows - mean) of both sets, tile by tile; the sum of a row is 0.
class GraphBackward {
 public:
  // grad: of the loss of each row; saved: as the forward left it. kept: the one tile holds the distances already.
  GraphBackward(py::object a, py::object b, py::object grad, py::object saved, bool root, double scale, double floor, bool symmetric, bool kept,
                int threads)
      : a_(a), b_(b), n_(TensorView(a, "a").size(0)), kind_{root, scale, static_cast<float>(floor)}, symmetric_(symmetric), kept_(kept),
        grad_(n_), u_sums_(n_, 0.0), v_sums_(n_, 0.0) {
    const TensorView va(a, "a"), vb(b, "b");
    const float *pa = va.data<float>({n_, -1}), *pb = vb.data<float>({n_, -1});
    const double* ps = TensorView(saved, "saved").data<double>({kGraphSaved, n_});
    const float* pg = TensorView(grad, "grad").data<float>({n_});
    saved_.assign(ps, ps + kGraphSaved * n_);
    grad_.assign(pg, pg + n_);
    const int64_t d = va.size(1), e = vb.size(1);
    if (kept_) return;
    py::gil_scoped_release release;
    u_ = std::make_unique<DistanceTiles>(graph_of(pa, n_, d, true, threads));
    v_ = std::make_unique<DistanceTiles>(graph_of(pb, n_, e, true, threads));
  }

  // Tiles of the upper triangle, those on the diagonal last, when the sums are complete.
  void weigh(py::object tile_a, py::object tile_b, int64_t row0, int64_t col0, int threads) {
    const TensorView view(tile_a, "tile_a");
    float* u = view.data<float>({-1, -1});
    const Tile t{row0, view.size(0), col0, view.size(1)};
    float* v = TensorView(tile_b, "tile_b").data<float>({t.rows, t.cols});
    const bool own = row0 == col0;
    if (row0 + t.rows > n_ || col0 + t.cols > n_ || row0 % kPanel != 0 || col0 % kPanel != 0) {
      throw py::value_error("tile: expected rows and columns of a, beginning at multiples of " + std::to_string(kPanel));
    }
    py::gil_scoped_release release;
    if (!kept_) {
      u_->fill(t, kind_.floor, kind_.root, u, threads);
      v_->fill(t, kind_.floor, kind_.root, v, threads);
    }
    const GraphSaved rows = graph_saved_at(grad_.data(), saved_.data(), n_, row0), cols = graph_saved_at(grad_.data(), saved_.data(), n_, col0);
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(graph_backward_rows, u, v, t.cols, r0, r1, own, kind_, symmetric_, rows, cols, u_sums_.data() + row0,
                      v_sums_.data() + row0);
    });
    if (own) {
      for (int64_t i = 0; i < t.rows; ++i) {
        u[i * t.cols + i] = static_cast<float>(-u_sums_[row0 + i]);
        v[i * t.cols + i] = static_cast<float>(-v_sums_[row0 + i]);
      }
      return;
    }
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(add_column_sums, u, t.rows, t.cols, c0, c1, u_sums_.data() + col0);
      VIFAST_DISPATCH(add_column_sums, v, t.rows, t.cols, c0, c1, v_sums_.data() + col0);
    });
  }

 private:
  py::object a_, b_;  // keep the rows alive
  int64_t n_;
  GraphKind kind_;
  bool symmetric_, kept_;
  std::vector<double> saved_, grad_, u_sums_, v_sums_;
  std::unique_ptr<DistanceTiles> u_, v_;
};

}  // namespace

void bind_graph_alignment(py::module_& m) {
  m.def("graph_forward", &graph_forward, py::arg("a"), py::arg("b"), py::arg("root"), py::arg("scale"), py::arg("floor"), py::arg("diagonal"),
        py::arg("symmetric"), py::arg("loss"), py::arg("saved"), py::arg("dist_a"), py::arg("dist_b"), py::arg("threads"),
        "Divergence between the rows of two graphs, see csrc/graph_alignment.h.");
  py::class_<GraphBackward>(m, "GraphBackward", "Weights of differences of its gradients.")
      .def(py::init<py::object, py::object, py::object, py::object, bool, double, double, bool, bool, int>(), py::arg("a"), py::arg("b"),
           py::arg("grad"), py::arg("saved"), py::arg("root"), py::arg("scale"), py::arg("floor"), py::arg("symmetric"), py::arg("kept"),
           py::arg("threads"))
      .def("weigh", &GraphBackward::weigh, py::arg("tile_a"), py::arg("tile_b"), py::arg("row0"), py::arg("col0"), py::arg("threads"));
}

}  // namespace vifast
