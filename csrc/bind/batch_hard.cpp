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

namespace vifast {

namespace {

// The state of one side lies in one int32 array [n, 2 + 2 * kHardSlots]: best and count of all anchors, then their slots.
HardSide side_at(py::handle object, const char* name, int64_t n, int64_t first) {
  int32_t* base = TensorView(object, name).data<int32_t>({n, 2 + 2 * kHardSlots});
  return {reinterpret_cast<float*>(base) + first, base + n + first, reinterpret_cast<float*>(base) + 2 * n + first * kHardSlots,
          base + (2 + kHardSlots) * n + first * kHardSlots};
}

void begin(py::object pos, py::object neg) {
  const int64_t n = TensorView(pos, "pos").size(0);
  VIFAST_DISPATCH(hard_begin, side_at(pos, "pos", n, 0), 0, n);
  VIFAST_DISPATCH(hard_begin, side_at(neg, "neg", n, 0), 0, n);
}

// tile[r, c] = product of anchor row0 + r and reference col0 + c. With both_ways the set is its own reference and the
// columns are folded as anchors too, so a pair of tiles is multiplied once.
void fold(py::object tile, int64_t row0, int64_t col0, py::object labels, py::object ref_labels, py::object sq, py::object ref_sq,
          int64_t depth, bool both_ways, py::object pos, py::object neg, int threads) {
  TensorView t(tile, "tile"), l(labels, "labels"), rl(ref_labels, "ref_labels"), s(sq, "sq"), rs(ref_sq, "ref_sq");
  const float* pt = t.data<float>({-1, -1});
  const int64_t rows = t.size(0), cols = t.size(1);
  const int32_t *pl = l.data<int32_t>({-1}) + row0, *prl = rl.data<int32_t>({-1}) + col0;
  const int64_t n = l.size(0);
  const float *ps = s.data<float>({n}) + row0, *prs = rs.data<float>({rl.size(0)}) + col0;
  if (row0 + rows > n || col0 + cols > rl.size(0)) throw py::value_error("tile: reaches beyond labels or ref_labels");
  const HardSide pos_row = side_at(pos, "pos", n, row0), neg_row = side_at(neg, "neg", n, row0);
  const float slack = hard_slack(depth);
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, cols));
  HardSide pos_col{}, neg_col{};
  if (both_ways) {
    pos_col = side_at(pos, "pos", n, col0);
    neg_col = side_at(neg, "neg", n, col0);
  }
  py::gil_scoped_release release;
  parallel_for(rows, grain, threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(hard_fold_rows, pt, cols, r0, r1, col0, pl, prl, ps, prs, slack, pos_row, neg_row);
  });
  if (!both_ways) return;
  parallel_for(cols, std::max<int64_t>(64, (1 << 14) / std::max<int64_t>(1, rows)), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(hard_fold_cols, pt, rows, cols, c0, c1, row0, pl, prl, ps, prs, slack, pos_col, neg_col);
  });
}

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

void finish(py::object feat, py::object reference, py::object labels, py::object ref_labels, py::object sq, py::object ref_sq,
            const std::string& metric, std::optional<double> margin, py::object pos, py::object neg, py::object loss, py::object d_pos, py::object d_neg, py::object i_pos, py::object i_neg,
            int threads) {
  TensorView f(feat, "feat"), r(reference, "reference"), l(labels, "labels"), rl(ref_labels, "ref_labels"), s(sq, "sq"), rs(ref_sq, "ref_sq"),
      lo(loss, "loss"), dp(d_pos, "d_pos"), dn(d_neg, "d_neg"), ip(i_pos, "i_pos"), in(i_neg, "i_neg");
  const float* pf = f.data<float>({-1, -1});
  const int64_t n = f.size(0), d = f.size(1);
  const float* pr = r.data<float>({-1, d});
  const int64_t m = r.size(0);
  const HardMetric how = metric_named(metric);
  float* plo = lo.data<float>({n});
  const int32_t *pl = l.data<int32_t>({n}), *prl = rl.data<int32_t>({m});
  const float *ps = s.data<float>({n}), *prs = rs.data<float>({m});
  const HardSide sp = side_at(pos, "pos", n, 0), sn = side_at(neg, "neg", n, 0);
  float *pdp = dp.data<float>({n}), *pdn = dn.data<float>({n});
  int64_t *pip = ip.data<int64_t>({n}), *pin = in.data<int64_t>({n});
  py::gil_scoped_release release;
  std::vector<int64_t> bad;
  for (int64_t j = 0; j < m; ++j) {
    if (!(prs[j] - prs[j] == 0)) bad.push_back(j);
  }
  const int64_t n_bad = static_cast<int64_t>(bad.size());
  parallel_for(n, std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, d)), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(hard_finish, pf, pr, m, d, r0, r1, pl, prl, ps, prs, bad.data(), n_bad, true, how, sp, pdp, pip);
    VIFAST_DISPATCH(hard_finish, pf, pr, m, d, r0, r1, pl, prl, ps, prs, bad.data(), n_bad, false, how, sn, pdn, pin);
    for (int64_t i = r0; i < r1; ++i) plo[i] = hinge(pdp[i] - pdn[i], margin);
  });
}

struct Entries {  // partners of each row in compressed rows, in a fixed order
  std::vector<int64_t> begin, partner;
  std::vector<float> weight;
};

struct Choice {  // one side of the mined pairs: partner, and the gradient of its distance as a factor of feat - partner
  const int64_t* index;
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
  m.attr("HARD_STATE_WORDS") = 2 + 2 * kHardSlots;
  m.def("hard_begin", &begin, py::arg("pos"), py::arg("neg"), "Resets the mining state.");
  m.def("hard_fold", &fold, py::arg("tile"), py::arg("row0"), py::arg("col0"), py::arg("labels"), py::arg("ref_labels"), py::arg("sq"),
        py::arg("ref_sq"), py::arg("depth"), py::arg("both_ways"), py::arg("pos"), py::arg("neg"), py::arg("threads"),
        "Folds a tile of products into the mining state.");
  m.def("hard_finish", &finish, py::arg("feat"), py::arg("reference"), py::arg("labels"), py::arg("ref_labels"), py::arg("sq"),
        py::arg("ref_sq"), py::arg("metric"), py::arg("margin"), py::arg("pos"), py::arg("neg"), py::arg("loss"), py::arg("d_pos"),
        py::arg("d_neg"), py::arg("i_pos"), py::arg("i_neg"), py::arg("threads"),
        "Decides among the candidates by direct difference.");
  m.def("hard_backward", &backward, py::arg("feat"), py::arg("reference"), py::arg("g_loss"), py::arg("g_pos"), py::arg("g_neg"),
        py::arg("d_pos"), py::arg("d_neg"), py::arg("i_pos"), py::arg("i_neg"), py::arg("metric"), py::arg("margin"),
        py::arg("grad_feat"), py::arg("grad_reference"), py::arg("threads"),
        "Weighted differences to the hard partners, summed per row in a fixed order.");
}

}  // namespace vifast
