#include "../batch_hard.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../packed_rows.h"
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

// Below this many rows moving them to their mean costs more than the extra candidates of a shared offset.
constexpr int64_t kCenterFrom = 1024;
constexpr int64_t kFoldGrain = 1 << 11;

// One set of rows as mining reads it.
struct Mined {
  int64_t size;
  std::vector<int32_t> codes;
  std::vector<float> sq;  // squared norms of the rows as multiplied
};

// A tile of products goes into the candidates of its rows, and with `columns` into those of its columns.
void fold(const float* tile, Tile t, const Mined& x, const Mined& y, float slack, SideStore& pos, SideStore& neg, bool columns, int threads) {
  const int32_t *row_codes = x.codes.data() + t.row0, *col_codes = y.codes.data() + t.col0;
  const float *row_sq = x.sq.data() + t.row0, *col_sq = y.sq.data() + t.col0;
  parallel_for(t.rows, std::max<int64_t>(1, kFoldGrain / std::max<int64_t>(1, t.cols)), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(hard_fold_rows, tile, t.cols, r0, r1, t.col0, row_codes, col_codes, row_sq, col_sq, slack, pos.at(t.row0), neg.at(t.row0));
  });
  if (!columns) return;
  parallel_for(t.cols, std::max<int64_t>(64, kFoldGrain / t.rows), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(hard_fold_cols, tile, t.rows, t.cols, c0, c1, t.row0, row_codes, col_codes, row_sq, col_sq, slack, pos.at(t.col0),
                    neg.at(t.col0));
  });
}

// The product nominates candidates of every anchor. Where the set is its own reference (`own`, y is x) a pair of tiles is
// multiplied once, and columns are anchors too.
void nominate(const float* px, const float* py, int64_t d, Mined& x, Mined& y, bool own, SideStore& pos, SideStore& neg, int threads) {
  const float slack = hard_slack(d);
  const std::unique_ptr<float[]> buffer(new float[std::min(x.size, kTile) * std::min(y.size, kTile)]);
  float* tile = buffer.get();
  if (own && x.size <= kSmall) {
    small_products(px, x.size, d, nullptr, tile, x.sq.data(), threads);
    mirror(tile, x.size, 1);
    return fold(tile, {0, x.size, 0, x.size}, x, x, slack, pos, neg, false, threads);
  }
  std::vector<float> mean;
  if (std::max(x.size, y.size) >= kCenterFrom) mean = common_mean(px, x.size, py, own ? 0 : y.size, d, threads);
  const float* origin = mean.empty() ? nullptr : mean.data();
  const PackedRows a(px, x.size, d, origin, x.sq.data(), threads);
  const PackedRows b = own ? PackedRows() : PackedRows(py, y.size, d, origin, y.sq.data(), threads);
  each_tile(x.size, y.size, own, [&](Tile t) {
    const bool diagonal = own && t.row0 == t.col0;
    products(a, own ? a : b, t, diagonal, tile, t.cols, threads);
    if (diagonal) mirror(tile, t.rows, threads);
    fold(tile, t, x, y, slack, pos, neg, own && !diagonal, threads);
  });
}

// reference, ref_labels: None where the set is its own reference.
void mine(py::object feat, py::object labels, py::object reference, py::object ref_labels, const std::string& metric,
          std::optional<double> margin, py::object loss, py::object d_pos, py::object d_neg, py::object i_pos, py::object i_neg, int threads) {
  const bool own = reference.is_none();
  const TensorView vx(feat, "feat"), vy(own ? feat : reference, "reference");
  const float* px = vx.data<float>({-1, -1});
  const int64_t n = vx.size(0), d = vx.size(1);
  const float* py_ = vy.data<float>({-1, d});
  const int64_t m = vy.size(0);
  const int64_t* pl = TensorView(labels, "labels").data<int64_t>({n});
  const int64_t* prl = own ? nullptr : TensorView(ref_labels, "ref_labels").data<int64_t>({m});
  float *out = TensorView(loss, "loss").data<float>({n}), *pdp = TensorView(d_pos, "d_pos").data<float>({n}),
        *pdn = TensorView(d_neg, "d_neg").data<float>({n});
  int64_t *pip = TensorView(i_pos, "i_pos").data<int64_t>({n}), *pin = TensorView(i_neg, "i_neg").data<int64_t>({n});
  const HardMetric how = metric_named(metric);
  py::gil_scoped_release release;

  Mined x{n, std::vector<int32_t>(n), std::vector<float>(n)}, other;
  if (!own) other = {m, std::vector<int32_t>(m), std::vector<float>(m)};
  Mined& y = own ? x : other;
  encode_labels(pl, n, prl, m, x.codes.data(), other.codes.data());
  SideStore pos(n), neg(n);
  nominate(px, py_, d, x, y, own, pos, neg, threads);

  const float *sq = x.sq.data(), *ref_sq = y.sq.data();
  std::vector<int64_t> bad;
  for (int64_t j = 0; j < m; ++j) {
    if (!std::isfinite(ref_sq[j])) bad.push_back(j);
  }
  const int64_t n_bad = static_cast<int64_t>(bad.size());
  // The candidates are decided by direct difference of the original rows.
  parallel_for(n, std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, d)), threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(hard_finish, px, py_, m, d, r0, r1, x.codes.data(), y.codes.data(), sq, ref_sq, bad.data(), n_bad, true, how, pos.at(0), pdp,
                    pip);
    VIFAST_DISPATCH(hard_finish, px, py_, m, d, r0, r1, x.codes.data(), y.codes.data(), sq, ref_sq, bad.data(), n_bad, false, how, neg.at(0), pdn,
                    pin);
    for (int64_t i = r0; i < r1; ++i) out[i] = hinge(pdp[i] - pdn[i], margin);
  });
}

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
  m.def("hard_mine", &mine, py::arg("feat"), py::arg("labels"), py::arg("reference"), py::arg("ref_labels"), py::arg("metric"),
        py::arg("margin"), py::arg("loss"), py::arg("d_pos"), py::arg("d_neg"), py::arg("i_pos"), py::arg("i_neg"), py::arg("threads"),
        "Hardest partners of every anchor, their distances and the loss, see csrc/batch_hard.h.");
  m.def("hard_backward", &backward, py::arg("feat"), py::arg("reference"), py::arg("g_loss"), py::arg("g_pos"), py::arg("g_neg"),
        py::arg("d_pos"), py::arg("d_neg"), py::arg("i_pos"), py::arg("i_neg"), py::arg("metric"), py::arg("margin"),
        py::arg("grad_feat"), py::arg("grad_reference"), py::arg("threads"),
        "Weighted differences to the hard partners, summed per row in a fixed order.");
}

}  // namespace vifast
