#include "../batch_hard.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"
#include "rows.h"

namespace vifast {

namespace {

struct SideStore {  // memory of a HardSide of n anchors
  std::vector<float> best, lower;
  std::vector<int32_t> count, index;
  explicit SideStore(int64_t n) : best(n), lower(n * kHardSlots), count(n), index(n * kHardSlots) {
    VIFAST_DISPATCH(hard_begin, at(0), 0, n);
  }
  HardSide at(int64_t first) {
    return {best.data() + first, count.data() + first, lower.data() + first * kHardSlots, index.data() + first * kHardSlots};
  }
};

HardMetric metric_named(const std::string& name) {
  if (name == "euclidean") return {true, 1.0f};
  if (name == "sqeuclidean") return {false, 1.0f};
  if (name == "cosine") return {false, 0.5f};  // of unit rows
  throw py::value_error("metric: expected euclidean, sqeuclidean or cosine, got " + name);
}

// max(0, gap + margin), or softplus(gap) where there is no margin; NaN stays NaN, -inf gives 0.
float hinge(float gap, std::optional<double> margin) {
  if (gap != gap) return gap;
  if (!margin) return std::fmax(gap, 0.0f) + std::log1p(std::exp(-std::fabs(gap)));
  const float raised = gap + static_cast<float>(*margin);
  return raised > 0 ? raised : 0.0f;
}

float hinge_slope(float gap, std::optional<double> margin) {
  if (margin) return gap + static_cast<float>(*margin) > 0 ? 1.0f : 0.0f;
  const float tail = std::exp(-std::fabs(gap));
  return (gap >= 0 ? 1.0f : tail) / (1.0f + tail);
}

// Mining in progress: labels, norms and candidates of every anchor. Memory: 280 bytes an anchor.
class HardMiner {
 public:
  // rows, ref_rows: what the tiles will be products of; one object where the set is its own reference.
  HardMiner(py::object rows, py::object ref_rows, py::object labels, py::object ref_labels, int threads)
      : own_reference_(rows.is(ref_rows)), n_(TensorView(rows, "rows").size(0)), pos_(n_), neg_(n_) {
    const TensorView x(rows, "rows"), y(ref_rows, "ref_rows"), l(labels, "labels"), rl(ref_labels, "ref_labels");
    const float* px = x.data<float>({-1, -1});
    d_ = x.size(1);
    const float* py_ = y.data<float>({-1, d_});
    const int64_t m = y.size(0);
    codes_.resize(n_);
    sq_.resize(n_);
    ref_codes_.resize(own_reference_ ? 0 : m);
    ref_sq_.resize(own_reference_ ? 0 : m);
    encode_labels(l.data<int64_t>({n_}), n_, own_reference_ ? nullptr : rl.data<int64_t>({m}), m, codes_.data(), ref_codes_.data());
    py::gil_scoped_release release;
    square_norms(px, n_, d_, sq_.data(), threads);
    if (!own_reference_) square_norms(py_, m, d_, ref_sq_.data(), threads);
  }

  // tile[r, c] = product of row row0 + r and reference row col0 + c. Off the diagonal of a set against itself the columns
  // are folded as anchors too, so a pair of tiles is multiplied once.
  void fold(py::object tile, int64_t row0, int64_t col0, int threads) {
    const TensorView t(tile, "tile");
    const float* pt = t.data<float>({-1, -1});
    const int64_t rows = t.size(0), cols = t.size(1);
    if (row0 + rows > n_ || col0 + cols > size_of_reference()) throw py::value_error("tile: reaches beyond the rows");
    const int32_t *pl = codes_.data() + row0, *prl = ref_codes() + col0;
    const float *ps = sq_.data() + row0, *prs = ref_sq() + col0;
    const float slack = hard_slack(d_);
    py::gil_scoped_release release;
    parallel_for(rows, std::max<int64_t>(1, kFoldGrain / std::max<int64_t>(1, cols)), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(hard_fold_rows, pt, cols, r0, r1, col0, pl, prl, ps, prs, slack, pos_.at(row0), neg_.at(row0));
    });
    if (!own_reference_ || row0 == col0) return;
    parallel_for(cols, std::max<int64_t>(64, kFoldGrain / std::max<int64_t>(1, rows)), threads, [&](int64_t c0, int64_t c1) {
      VIFAST_DISPATCH(hard_fold_cols, pt, rows, cols, c0, c1, row0, pl, prl, ps, prs, slack, pos_.at(col0), neg_.at(col0));
    });
  }

  // Decides among the candidates by direct difference of the original rows.
  void finish(py::object feat, py::object reference, const std::string& metric, std::optional<double> margin, py::object loss,
              py::object d_pos, py::object d_neg, py::object i_pos, py::object i_neg, int threads) {
    const int64_t m = size_of_reference();
    const float *pf = TensorView(feat, "feat").data<float>({n_, d_}), *pr = TensorView(reference, "reference").data<float>({m, d_});
    float *pl = TensorView(loss, "loss").data<float>({n_}), *pdp = TensorView(d_pos, "d_pos").data<float>({n_}),
          *pdn = TensorView(d_neg, "d_neg").data<float>({n_});
    int64_t *pip = TensorView(i_pos, "i_pos").data<int64_t>({n_}), *pin = TensorView(i_neg, "i_neg").data<int64_t>({n_});
    const HardMetric how = metric_named(metric);
    py::gil_scoped_release release;
    std::vector<int64_t> bad;
    for (int64_t j = 0; j < m; ++j) {
      if (!std::isfinite(ref_sq()[j])) bad.push_back(j);
    }
    const int64_t n_bad = static_cast<int64_t>(bad.size());
    parallel_for(n_, std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, d_)), threads, [&](int64_t r0, int64_t r1) {
      VIFAST_DISPATCH(hard_finish, pf, pr, m, d_, r0, r1, codes_.data(), ref_codes(), sq_.data(), ref_sq(), bad.data(), n_bad, true, how,
                      pos_.at(0), pdp, pip);
      VIFAST_DISPATCH(hard_finish, pf, pr, m, d_, r0, r1, codes_.data(), ref_codes(), sq_.data(), ref_sq(), bad.data(), n_bad, false, how,
                      neg_.at(0), pdn, pin);
      for (int64_t i = r0; i < r1; ++i) pl[i] = hinge(pdp[i] - pdn[i], margin);
    });
  }

 private:
  static constexpr int64_t kFoldGrain = 1 << 11;
  int64_t size_of_reference() const { return own_reference_ ? n_ : static_cast<int64_t>(ref_sq_.size()); }
  const int32_t* ref_codes() const { return own_reference_ ? codes_.data() : ref_codes_.data(); }
  const float* ref_sq() const { return own_reference_ ? sq_.data() : ref_sq_.data(); }

  bool own_reference_;
  int64_t n_, d_ = 0;
  std::vector<int32_t> codes_, ref_codes_;
  std::vector<float> sq_, ref_sq_;
  SideStore pos_, neg_;
};

struct Choice {  // one side of the mined pairs: partner, and the gradient of its distance as a factor of feat - partner
  const int64_t* index;
  std::vector<float> weight;
};

struct Entries {  // partners of each row in compressed rows, in a fixed order
  std::vector<int64_t> begin, partner;
  std::vector<float> weight;
};

// Own entries of a row are its two hard partners; reverse entries are the anchors that chose it, in rising order.
Entries gather_entries(int64_t rows, int64_t n, const Choice (&choices)[2], bool own, bool reverse) {
  Entries e;
  e.begin.assign(rows + 1, 0);
  auto each = [&](auto emit) {
    for (int64_t i = 0; i < n; ++i) {
      for (const Choice& c : choices) {
        const int64_t j = c.index[i];
        const float w = c.weight[i];
        if (j < 0 || w == 0.0f) continue;  // also keeps a NaN partner that no gradient reaches out of the sum
        if (own) emit(i, j, w);
        if (reverse) emit(j, i, w);
      }
    }
  };
  each([&](int64_t row, int64_t, float) { ++e.begin[row + 1]; });
  for (int64_t r = 0; r < rows; ++r) e.begin[r + 1] += e.begin[r];
  e.partner.resize(e.begin[rows]);
  e.weight.resize(e.begin[rows]);
  std::vector<int64_t> next(e.begin.begin(), e.begin.end() - 1);
  each([&](int64_t row, int64_t partner, float w) {
    e.partner[next[row]] = partner;
    e.weight[next[row]++] = w;
  });
  return e;
}

// g_loss, g_pos, g_neg: gradients of the losses and of the mined distances, None for zero. grad_reference is None when the
// set is its own reference, and both parts then go to grad_feat.
void backward(py::object feat, py::object reference, py::object g_loss, py::object g_pos, py::object g_neg, py::object d_pos,
              py::object d_neg, py::object i_pos, py::object i_neg, const std::string& metric, std::optional<double> margin,
              py::object grad_feat, py::object grad_reference, int threads) {
  const bool own_reference = grad_reference.is_none();
  TensorView f(feat, "feat"), r(reference, "reference"), gf(grad_feat, "grad_feat");
  const float* pf = f.data<float>({-1, -1});
  const int64_t n = f.size(0), d = f.size(1);
  const float* pr = r.data<float>({-1, d});
  const int64_t m = r.size(0);
  TensorView ip(i_pos, "i_pos"), in(i_neg, "i_neg"), dp(d_pos, "d_pos"), dn(d_neg, "d_neg");
  const float *pdp = dp.data<float>({n}), *pdn = dn.data<float>({n});
  Choice choices[2] = {{ip.data<int64_t>({n}), std::vector<float>(n)}, {in.data<int64_t>({n}), std::vector<float>(n)}};
  auto optional = [n](py::object& grad, const char* name) { return grad.is_none() ? nullptr : TensorView(grad, name).data<float>({n}); };
  const float *pgl = optional(g_loss, "g_loss"), *pgp = optional(g_pos, "g_pos"), *pgn = optional(g_neg, "g_neg");
  const HardMetric how = metric_named(metric);
  for (int64_t i = 0; i < n; ++i) {
    const float common = pgl == nullptr ? 0.0f : pgl[i] * hinge_slope(pdp[i] - pdn[i], margin);
    const float grad[2] = {(pgp == nullptr ? 0.0f : pgp[i]) + common, (pgn == nullptr ? 0.0f : pgn[i]) - common};
    const float dist[2] = {pdp[i], pdn[i]};
    for (int side = 0; side < 2; ++side) {
      if (choices[side].index[i] >= m) throw py::value_error("i_pos, i_neg: expected indices below " + std::to_string(m));
      const bool clamped = dist[side] * dist[side] <= kHardFloor * 1.0001f;
      const bool idle = grad[side] == 0.0f || (how.root && clamped);
      choices[side].weight[i] = idle ? 0.0f : how.root ? grad[side] / dist[side] : 2 * how.scale * grad[side];
    }
  }
  float* pgf = gf.data<float>({n, d});
  float* pgr = own_reference ? nullptr : TensorView(grad_reference, "grad_reference").data<float>({m, d});
  py::gil_scoped_release release;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, d));
  const Entries e = gather_entries(n, n, choices, true, own_reference);
  parallel_for(n, grain, threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(weighted_differences, pf, pr, d, r0, r1, e.begin.data(), e.partner.data(), e.weight.data(), pgf);
  });
  if (own_reference) return;
  const Entries back = gather_entries(m, n, choices, false, true);
  parallel_for(m, grain, threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(weighted_differences, pr, pf, d, r0, r1, back.begin.data(), back.partner.data(), back.weight.data(), pgr);
  });
}

}  // namespace

void bind_batch_hard(py::module_& m) {
  py::class_<HardMiner>(m, "HardMiner", "Mining of hard pairs behind a tiled product, see csrc/batch_hard.h.")
      .def(py::init<py::object, py::object, py::object, py::object, int>(), py::arg("rows"), py::arg("ref_rows"), py::arg("labels"),
           py::arg("ref_labels"), py::arg("threads"))
      .def("fold", &HardMiner::fold, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("threads"))
      .def("finish", &HardMiner::finish, py::arg("feat"), py::arg("reference"), py::arg("metric"), py::arg("margin"), py::arg("loss"),
           py::arg("d_pos"), py::arg("d_neg"), py::arg("i_pos"), py::arg("i_neg"), py::arg("threads"));
  m.def("hard_backward", &backward, py::arg("feat"), py::arg("reference"), py::arg("g_loss"), py::arg("g_pos"), py::arg("g_neg"),
        py::arg("d_pos"), py::arg("d_neg"), py::arg("i_pos"), py::arg("i_neg"), py::arg("metric"), py::arg("margin"),
        py::arg("grad_feat"), py::arg("grad_reference"), py::arg("threads"),
        "Weighted differences to the hard partners, summed per row in a fixed order.");
}

}  // namespace vifast
