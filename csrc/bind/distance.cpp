#include "../distance.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../packed_rows.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements below which a second thread does not pay

}  // namespace

void encode_labels(const int64_t* a, int64_t n, const int64_t* b, int64_t m, int32_t* out_a, int32_t* out_b) {
  std::vector<int64_t> values(a, a + n);
  if (b != nullptr) values.insert(values.end(), b, b + m);
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  auto encode = [&](int64_t v) { return static_cast<int32_t>(std::lower_bound(values.begin(), values.end(), v) - values.begin()); };
  for (int64_t i = 0; i < n; ++i) out_a[i] = encode(a[i]);
  for (int64_t j = 0; b != nullptr && j < m; ++j) out_b[j] = encode(b[j]);
}

void tile_distances(const float* x, const float* y, int64_t d, const float* sq_x, const float* sq_y, Tile t, bool upper, float floor, bool root,
                    float* tile, int64_t stride, int threads) {
  const int64_t panels = (t.rows + kPanel - 1) / kPanel;
  parallel_for(panels, std::max<int64_t>(1, kGrain / (kPanel * std::max<int64_t>(1, t.cols))), threads, [&](int64_t p0, int64_t p1) {
    for (int64_t r = p0 * kPanel; r < std::min(p1 * kPanel, t.rows); r += kPanel) {
      const int64_t skip = upper ? r : 0, row = t.row0 + r, col = t.col0 + skip;
      VIFAST_DISPATCH(products_to_distances, tile + r * stride + skip, stride, t.cols - skip, 0, std::min(kPanel, t.rows - r), x + row * d,
                      y + col * d, d, sq_x + row, sq_y + col, floor, root);
    }
  });
}

namespace {

// mean [d] becomes the mean of the finite entries of feat's columns.
void column_mean(py::object feat, py::object mean, int threads) {
  const TensorView x(feat, "feat");
  const float* px = x.data<float>({-1, -1});
  const int64_t n = x.size(0), d = x.size(1);
  float* out = TensorView(mean, "mean").data<float>({d});
  py::gil_scoped_release release;
  const std::vector<float> values = common_mean(px, n, nullptr, 0, d, threads);
  std::copy(values.begin(), values.end(), out);
}

void subtract(py::object feat, py::object mean, py::object out, int threads) {
  const TensorView x(feat, "feat");
  const float* px = x.data<float>({-1, -1});
  const int64_t n = x.size(0), d = x.size(1);
  const float* pm = TensorView(mean, "mean").data<float>({d});
  float* po = TensorView(out, "out").data<float>({n, d});
  py::gil_scoped_release release;
  parallel_for(n, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, d)), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(center_rows, px, d, pm, r0, r1, po); });
}

// codes [n] become 0 .. k - 1 in the order in which labels appear, the first k of first [n] where each does first; returns k.
int64_t identity_codes(py::object labels, py::object codes, py::object first) {
  const TensorView view(labels, "labels");
  const int64_t* from = view.data<int64_t>({-1});
  const int64_t n = view.size(0);
  int64_t *out = TensorView(codes, "codes").data<int64_t>({n}), *rows = TensorView(first, "first").data<int64_t>({n});
  std::vector<int32_t> sorted(n);
  encode_labels(from, n, nullptr, 0, sorted.data(), nullptr);
  std::vector<int64_t> code(n, -1);
  int64_t k = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t& own = code[sorted[i]];
    if (own < 0) {
      rows[k] = i;
      own = k++;
    }
    out[i] = own;
  }
  return k;
}

// other: None for feat itself, whose distances are then symmetric to the bit and cost half of the products.
void pairwise(py::object feat, py::object other, double floor, bool root, py::object out, int threads) {
  const bool own = other.is_none();
  const TensorView x(feat, "feat"), y(own ? feat : other, "other");
  const float* px = x.data<float>({-1, -1});
  const int64_t n = x.size(0), d = x.size(1);
  const float* py_ = y.data<float>({-1, d});
  const int64_t m = y.size(0);
  float* po = TensorView(out, "out").data<float>({n, m});
  py::gil_scoped_release release;
  const std::vector<float> mean = common_mean(px, n, py_, own ? 0 : m, d, threads);
  std::vector<float> sq(n), other_sq(own ? 0 : m);
  const PackedRows a(px, n, d, mean.data(), sq.data(), threads);
  const PackedRows b = own ? PackedRows() : PackedRows(py_, m, d, mean.data(), other_sq.data(), threads);
  each_tile(n, m, own, [&](Tile t) {
    const bool upper = own && t.row0 == t.col0;
    float* tile = po + t.row0 * m + t.col0;
    products(a, own ? a : b, t, upper, tile, m, threads);
    tile_distances(px, py_, d, sq.data(), own ? sq.data() : other_sq.data(), t, upper, static_cast<float>(floor), root, tile, m, threads);
  });
  if (own) mirror(po, n, threads);
}

}  // namespace

void bind_distance(py::module_& m) {
  m.def("column_mean", &column_mean, py::arg("feat"), py::arg("mean"), py::arg("threads"), "Mean of the finite entries of each column.");
  m.def("subtract", &subtract, py::arg("feat"), py::arg("mean"), py::arg("out"), py::arg("threads"), "Rows less their mean.");
  m.def("identity_codes", &identity_codes, py::arg("labels"), py::arg("codes"), py::arg("first"),
        "Labels as 0 .. k - 1 in order of appearance; returns k.");
  m.def("pairwise", &pairwise, py::arg("feat"), py::arg("other"), py::arg("floor"), py::arg("root"), py::arg("out"), py::arg("threads"),
        "Distances of all pairs.");
}

}  // namespace vifast
