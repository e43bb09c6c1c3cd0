#include "../distance.h"

#include <algorithm>
#include <cmath>
#include <vector>

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

void square_norms(const float* x, int64_t n, int64_t d, float* sq, int threads) {
  parallel_for(n, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, d)), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(row_norms, x, d, r0, r1, sq); });
}

namespace {

// feat and other may be one object: it is then centred once.
void center(py::object feat, py::object other, py::object feat_c, py::object other_c, int threads) {
  const bool same = feat.is(other);
  const TensorView x(feat, "feat"), y(other, "other"), xc(feat_c, "feat_c"), yc(other_c, "other_c");
  const float* px = x.data<float>({-1, -1});
  const int64_t n = x.size(0), d = x.size(1);
  const float* py_ = y.data<float>({-1, d});
  const int64_t m = y.size(0);
  float *pxc = xc.data<float>({n, d}), *pyc = yc.data<float>({m, d});
  py::gil_scoped_release release;
  std::vector<float> mean(d, 0.0f);
  const int64_t total = same ? n : n + m;
  parallel_for(d, std::max<int64_t>(64, kGrain / std::max<int64_t>(1, total)), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(column_means, px, n, d, total, c0, c1, mean.data());
    if (!same) VIFAST_DISPATCH(column_means, py_, m, d, total, c0, c1, mean.data());
  });
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, d));
  parallel_for(n, grain, threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(center_rows, px, d, mean.data(), r0, r1, pxc); });
  if (same) return;
  parallel_for(m, grain, threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(center_rows, py_, d, mean.data(), r0, r1, pyc); });
}

// Rows of `tile` are products of rows of a_c with all of b_c; a and b are the same rows before they were moved.
void to_distances(py::object tile, py::object a, py::object b, py::object a_c, py::object b_c, double floor, bool root, int threads) {
  const TensorView t(tile, "tile"), va(a, "a"), vb(b, "b"), vac(a_c, "a_c"), vbc(b_c, "b_c");
  float* pt = t.data<float>({-1, -1});
  const int64_t rows = t.size(0), cols = t.size(1);
  const float* pa = va.data<float>({rows, -1});
  const int64_t d = va.size(1);
  const float *pb = vb.data<float>({cols, d}), *pac = vac.data<float>({rows, d}), *pbc = vbc.data<float>({cols, d});
  py::gil_scoped_release release;
  std::vector<float> sq_a(rows), sq_b(cols);
  square_norms(pac, rows, d, sq_a.data(), threads);
  square_norms(pbc, cols, d, sq_b.data(), threads);
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cols)), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(products_to_distances, pt, cols, r0, r1, pa, pb, d, sq_a.data(), sq_b.data(), static_cast<float>(floor), root);
  });
}

}  // namespace

void bind_distance(py::module_& m) {
  m.def("center", &center, py::arg("feat"), py::arg("other"), py::arg("feat_c"), py::arg("other_c"), py::arg("threads"),
        "Rows less the common mean of the finite entries.");
  m.def("products_to_distances", &to_distances, py::arg("tile"), py::arg("a"), py::arg("b"), py::arg("a_c"), py::arg("b_c"),
        py::arg("floor"), py::arg("root"), py::arg("threads"), "A tile of products of centred rows to distances, in place.");
}

}  // namespace vifast
