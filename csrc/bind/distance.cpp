#include "../distance.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements below which a second thread does not pay

// int64 labels of both sets become int32 codes with the same equalities.
void encode_labels(const int64_t* a, int64_t n, const int64_t* b, int64_t m, int32_t* out_a, int32_t* out_b) {
  std::vector<int64_t> values(a, a + n);
  if (b != a) values.insert(values.end(), b, b + m);
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  auto encode = [&](int64_t v) {
    return static_cast<int32_t>(std::lower_bound(values.begin(), values.end(), v) - values.begin());
  };
  for (int64_t i = 0; i < n; ++i) out_a[i] = encode(a[i]);
  if (b != a) {
    for (int64_t j = 0; j < m; ++j) out_b[j] = encode(b[j]);
  }
}

// feat and other may be one object: it is then centred once.
void center(py::object feat, py::object other, py::object feat_c, py::object other_c, py::object sq_feat, py::object sq_other,
            int threads) {
  const bool same = feat.is(other);
  TensorView x(feat, "feat"), y(other, "other"), xc(feat_c, "feat_c"), yc(other_c, "other_c"), sx(sq_feat, "sq_feat"),
      sy(sq_other, "sq_other");
  const float* px = x.data<float>({-1, -1});
  const int64_t n = x.size(0), d = x.size(1);
  const float* py_ = y.data<float>({-1, d});
  const int64_t m = y.size(0);
  float *pxc = xc.data<float>({n, d}), *pyc = yc.data<float>({m, d});
  float *psx = sx.data<float>({n}), *psy = sy.data<float>({m});
  py::gil_scoped_release release;
  std::vector<float> mean(d, 0.0f);
  const int64_t total = same ? n : n + m;
  parallel_for(d, std::max<int64_t>(64, kGrain / std::max<int64_t>(1, total)), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(column_means, px, n, d, total, c0, c1, mean.data());
    if (!same) VIFAST_DISPATCH(column_means, py_, m, d, total, c0, c1, mean.data());
  });
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, d));
  parallel_for(n, grain, threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(center_rows, px, d, mean.data(), r0, r1, pxc, psx); });
  if (same) return;
  parallel_for(m, grain, threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(center_rows, py_, d, mean.data(), r0, r1, pyc, psy); });
}

void norms(py::object feat, py::object sq, int threads) {
  TensorView x(feat, "feat"), s(sq, "sq");
  const float* px = x.data<float>({-1, -1});
  const int64_t n = x.size(0), d = x.size(1);
  float* ps = s.data<float>({n});
  py::gil_scoped_release release;
  parallel_for(n, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, d)), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(row_norms, px, d, r0, r1, ps); });
}

void encode(py::object labels, py::object other, py::object out_labels, py::object out_other) {
  TensorView a(labels, "labels"), b(other, "other"), oa(out_labels, "out_labels"), ob(out_other, "out_other");
  const int64_t* pa = a.data<int64_t>({-1});
  const int64_t* pb = b.data<int64_t>({-1});
  encode_labels(pa, a.size(0), pb, b.size(0), oa.data<int32_t>({a.size(0)}), ob.data<int32_t>({b.size(0)}));
}

void to_distances(py::object tile, py::object a, py::object b, py::object sq_a, py::object sq_b, double floor, bool root, int threads) {
  TensorView t(tile, "tile"), va(a, "a"), vb(b, "b"), sa(sq_a, "sq_a"), sb(sq_b, "sq_b");
  float* pt = t.data<float>({-1, -1});
  const int64_t rows = t.size(0), cols = t.size(1);
  const float* pa = va.data<float>({rows, -1});
  const int64_t d = va.size(1);
  const float *pb = vb.data<float>({cols, d}), *psa = sa.data<float>({rows}), *psb = sb.data<float>({cols});
  py::gil_scoped_release release;
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cols)), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(products_to_distances, pt, cols, r0, r1, pa, pb, d, psa, psb, static_cast<float>(floor), root);
  });
}

}  // namespace

void bind_distance(py::module_& m) {
  m.def("center", &center, py::arg("feat"), py::arg("other"), py::arg("feat_c"), py::arg("other_c"), py::arg("sq_feat"),
        py::arg("sq_other"), py::arg("threads"), "Rows less the common mean of the finite entries, and their squared norms.");
  m.def("row_norms", &norms, py::arg("feat"), py::arg("sq"), py::arg("threads"), "Squared norms of the rows.");
  m.def("encode_labels", &encode, py::arg("labels"), py::arg("other"), py::arg("out_labels"), py::arg("out_other"),
        "int64 labels to int32 codes with the same equalities within and across both sets.");
  m.def("products_to_distances", &to_distances, py::arg("tile"), py::arg("a"), py::arg("b"), py::arg("sq_a"), py::arg("sq_b"),
        py::arg("floor"), py::arg("root"), py::arg("threads"), "A tile of products of centred rows to distances, in place.");
}

}  // namespace vifast
