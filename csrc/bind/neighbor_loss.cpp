#include "../neighbor_loss.h"

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

constexpr int64_t kNeighborSaved = 3;  // rows of `saved`: least distance, 1 / z, 1 / number of positives

// Rows that look for neighbors, and those they look among: of another set, or of the same one.
struct Neighborhood {
  bool own;
  int64_t n, m, d;
  const float *x, *y;  // y null where it is x
  std::vector<int32_t> codes, to_codes;
  const int32_t* among() const { return own ? codes.data() : to_codes.data(); }

  Neighborhood(const py::object& feat, const py::object& labels, const py::object& reference, const py::object& ref_labels)
      : own(reference.is_none()) {
    const TensorView vx(feat, "feat"), vy(own ? feat : reference, "reference");
    x = vx.data<float>({-1, -1});
    n = vx.size(0);
    d = vx.size(1);
    y = vy.data<float>({-1, d});
    m = vy.size(0);
    const int64_t* pl = TensorView(labels, "labels").data<int64_t>({n});
    const int64_t* pr = own ? nullptr : TensorView(ref_labels, "ref_labels").data<int64_t>({m});
    codes.resize(n);
    to_codes.resize(own ? 0 : m);
    encode_labels(pl, n, pr, own ? 0 : m, codes.data(), to_codes.data());
    if (own) y = nullptr;
  }

  DistanceTiles tiles(std::vector<float> origin, bool pack, int threads) const { return {x, n, y, m, d, std::move(origin), pack, threads}; }

  // Distances of a tile; a row has none to itself.
  void distances(DistanceTiles& from, Tile t, NeighborKind kind, float* out, int threads) const {
    from.fill(t, kind.floor, kind.root, out, threads);
    for (int64_t i = 0; own && t.row0 == t.col0 && i < t.rows; ++i) out[i * t.cols + i] = INFINITY;
  }
};

NeighborKind neighbor_kind(bool root, double floor, double factor) { return {root, static_cast<float>(floor), static_cast<float>(factor)}; }

bool sound(float square) { return square - square == 0; }

// Losses of all rows and what their gradient needs. mean [D] becomes the mean row; dist, [N, M] for at most kSmall rows or None, the
// distances.
void neighbor_forward(py::object feat, py::object labels, py::object reference, py::object ref_labels, bool root, double floor, double factor,
                      py::object loss, py::object saved, py::object mean, py::object dist, int threads) {
  const Neighborhood s(feat, labels, reference, ref_labels);
  const int64_t n = s.n, m = s.m;
  float *pl = TensorView(loss, "loss").data<float>({n}), *pm = TensorView(mean, "mean").data<float>({s.d});
  float* out = TensorView(saved, "saved").data<float>({kNeighborSaved, n});
  float* kept = dist.is_none() ? nullptr : TensorView(dist, "dist").data<float>({n, m});
  if (kept != nullptr && std::max(n, m) > kSmall) throw py::value_error("dist: expected None beyond " + std::to_string(kSmall) + " rows");
  const NeighborKind kind = neighbor_kind(root, floor, factor);
  py::gil_scoped_release release;

  DistanceTiles tiles = s.tiles(common_mean(s.x, n, s.y, s.own ? 0 : m, s.d, threads), kept == nullptr || !s.own, threads);
  std::copy(tiles.origin().begin(), tiles.origin().end(), pm);
  std::vector<double> least(n, INFINITY), sums(3 * n, 0.0);
  auto state = [&](int64_t first) {
    return NeighborState{least.data() + first, sums.data() + first, sums.data() + n + first, sums.data() + 2 * n + first};
  };
  auto fold = [&](Tile t, float* tile) {
    s.distances(tiles, t, kind, tile, threads);
    const int32_t *rows = s.codes.data() + t.row0, *cols = s.among() + t.col0;
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(neighbor_fold_rows, tile, t.cols, r0, r1, rows, cols, kind.factor, state(t.row0));
    });
    if (!s.own || t.row0 == t.col0) return;
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(neighbor_fold_cols, tile, t.rows, t.cols, c0, c1, rows, cols, kind.factor, state(t.col0));
    });
  };
  if (kept != nullptr) {
    fold({0, n, 0, m}, kept);
  } else {
    const std::unique_ptr<float[]> tile(new float[std::min(n, kTile) * std::min(m, kTile)]);
    each_tile(n, m, s.own, [&](Tile t) { fold(t, tile.get()); });
  }
  const bool among = std::all_of(tiles.sq_y().begin(), tiles.sq_y().end(), sound);
  const NeighborState all = state(0);
  for (int64_t i = 0; i < n; ++i) {
    const bool spoilt = !among || !sound(tiles.sq_x()[i]), idle = spoilt || all.count[i] == 0;
    const double value = std::log(all.z[i]) + factor * (all.near[i] / all.count[i] - all.least[i]) - std::log(all.count[i]);
    pl[i] = spoilt ? NAN : idle ? 0.0f : static_cast<float>(value);
    out[i] = idle ? 0.0f : static_cast<float>(all.least[i]);
    out[n + i] = idle ? 0.0f : static_cast<float>(1 / all.z[i]);
    out[2 * n + i] = idle ? 0.0f : static_cast<float>(1 / all.count[i]);
  }
}

// The weights w of the gradients of differences, tile by tile. Of one set they are those of w @ (feat - mean), with sums on the
// diagonal; of two, -s_ij, whose sums are asked for in the end.
class NeighborBackward {
 public:
  // grad: of the loss of each row; saved, mean: as the forward left them; mean None where it kept the distances, which the one tile
  // then holds.
  NeighborBackward(py::object feat, py::object labels, py::object reference, py::object ref_labels, bool root, double floor, double factor,
                   py::object mean, py::object grad, py::object saved, int threads)
      : feat_(feat), reference_(reference), set_(feat, labels, reference, ref_labels), kind_(neighbor_kind(root, floor, factor)),
        row_sums_(set_.n, 0.0), col_sums_(set_.own ? 0 : set_.m, 0.0) {
    const float* ps = TensorView(saved, "saved").data<float>({kNeighborSaved, set_.n});
    const float* pg = TensorView(grad, "grad").data<float>({set_.n});
    saved_.assign(ps, ps + kNeighborSaved * set_.n);
    for (int64_t i = 0; i < set_.n; ++i) {
      saved_[set_.n + i] *= pg[i] * kind_.factor;
      saved_[2 * set_.n + i] *= pg[i] * kind_.factor;
    }
    if (mean.is_none()) return;
    const float* pm = TensorView(mean, "mean").data<float>({set_.d});
    py::gil_scoped_release release;
    tiles_ = std::make_unique<DistanceTiles>(set_.tiles(std::vector<float>(pm, pm + set_.d), true, threads));
  }

  // Of one set tiles of the upper triangle, those on the diagonal last, when the sums are complete.
  void weigh(py::object tile, int64_t row0, int64_t col0, int threads) {
    const TensorView view(tile, "tile");
    float* w = view.data<float>({-1, -1});
    const Tile t{row0, view.size(0), col0, view.size(1)};
    if (row0 + t.rows > set_.n || col0 + t.cols > set_.m || row0 % kPanel != 0 || col0 % kPanel != 0) {
      throw py::value_error("tile: expected rows and columns of pairs, beginning at multiples of " + std::to_string(kPanel));
    }
    py::gil_scoped_release release;
    if (tiles_ != nullptr) set_.distances(*tiles_, t, kind_, w, threads);
    const int32_t *rows = set_.codes.data() + row0, *cols = set_.among() + col0;
    parallel_for(t.rows, row_grain(t.cols), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(neighbor_backward_rows, w, t.cols, r0, r1, rows, cols, kind_, set_.own, at(row0), at(set_.own ? col0 : 0),
                      row_sums_.data() + row0);
    });
    if (set_.own && row0 == col0) {
      for (int64_t i = 0; i < t.rows; ++i) w[i * t.cols + i] = static_cast<float>(-row_sums_[row0 + i]);
      return;
    }
    double* sums = (set_.own ? row_sums_ : col_sums_).data() + col0;
    parallel_for(t.cols, col_grain(t.rows), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(add_column_sums, w, t.rows, t.cols, c0, c1, sums);
    });
  }

  // Sums of the weights of two sets, of each row and of each column.
  void sums(py::object rows, py::object cols) {
    float *pr = TensorView(rows, "rows").data<float>({set_.n}), *pc = TensorView(cols, "cols").data<float>({set_.m});
    for (int64_t i = 0; i < set_.n; ++i) pr[i] = static_cast<float>(row_sums_[i]);
    for (int64_t j = 0; j < set_.m; ++j) pc[j] = static_cast<float>(col_sums_[j]);
  }

 private:
  NeighborSaved at(int64_t first) const {
    const float* base = saved_.data() + first;
    return {base, base + set_.n, base + 2 * set_.n};
  }

  py::object feat_, reference_;  // keep the rows alive
  Neighborhood set_;
  NeighborKind kind_;
  std::vector<float> saved_;
  std::vector<double> row_sums_, col_sums_;
  std::unique_ptr<DistanceTiles> tiles_;
};

}  // namespace

void bind_neighbor_loss(py::module_& m) {
  m.def("neighbor_forward", &neighbor_forward, py::arg("feat"), py::arg("labels"), py::arg("reference"), py::arg("ref_labels"), py::arg("root"),
        py::arg("floor"), py::arg("factor"), py::arg("loss"), py::arg("saved"), py::arg("mean"), py::arg("dist"), py::arg("threads"),
        "Neighbor-probability loss of every row, see csrc/neighbor_loss.h.");
  py::class_<NeighborBackward>(m, "NeighborBackward", "Weights of differences of its gradients.")
      .def(py::init<py::object, py::object, py::object, py::object, bool, double, double, py::object, py::object, py::object, int>(),
           py::arg("feat"), py::arg("labels"), py::arg("reference"), py::arg("ref_labels"), py::arg("root"), py::arg("floor"),
           py::arg("factor"), py::arg("mean"), py::arg("grad"), py::arg("saved"), py::arg("threads"))
      .def("weigh", &NeighborBackward::weigh, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("threads"))
      .def("sums", &NeighborBackward::sums, py::arg("rows"), py::arg("cols"));
}

}  // namespace vifast
