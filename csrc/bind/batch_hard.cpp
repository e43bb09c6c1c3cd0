#include "../batch_hard.h"

#include <algorithm>
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

void finish(py::object feat, py::object reference, py::object labels, py::object ref_labels, py::object sq, py::object ref_sq,
            bool root, py::object pos, py::object neg, py::object d_pos, py::object d_neg, py::object i_pos, py::object i_neg,
            int threads) {
  TensorView f(feat, "feat"), r(reference, "reference"), l(labels, "labels"), rl(ref_labels, "ref_labels"), s(sq, "sq"), rs(ref_sq, "ref_sq"),
      dp(d_pos, "d_pos"), dn(d_neg, "d_neg"), ip(i_pos, "i_pos"), in(i_neg, "i_neg");
  const float* pf = f.data<float>({-1, -1});
  const int64_t n = f.size(0), d = f.size(1);
  const float* pr = r.data<float>({-1, d});
  const int64_t m = r.size(0);
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
    VIFAST_DISPATCH(hard_finish, pf, pr, m, d, r0, r1, pl, prl, ps, prs, bad.data(), n_bad, true, root, sp, pdp, pip);
    VIFAST_DISPATCH(hard_finish, pf, pr, m, d, r0, r1, pl, prl, ps, prs, bad.data(), n_bad, false, root, sn, pdn, pin);
  });
}

struct Entries {  // partners of each row in compressed rows, in a fixed order
  std::vector<int64_t> begin, partner;
  std::vector<float> weight;
};

// Own entries of a row are its two hard partners; reverse entries are the anchors that chose it, in rising order.
Entries gather_entries(int64_t rows, int64_t n, const int64_t* ip, const int64_t* in, const float* wp, const float* wn, bool own,
                       bool reverse) {
  Entries e;
  e.begin.assign(rows + 1, 0);
  auto each = [&](auto emit) {
    for (int64_t i = 0; i < n; ++i) {
      for (int side = 0; side < 2; ++side) {
        const int64_t j = side ? in[i] : ip[i];
        const float w = side ? wn[i] : wp[i];
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

// Gradients of sum_i w_pos[i] / 2 ||feat_i - reference_(i_pos[i])||^2 + the same for i_neg; grad_reference is None when the
// set is its own reference, and both parts then go to grad_feat.
void backward(py::object feat, py::object reference, py::object i_pos, py::object i_neg, py::object w_pos, py::object w_neg,
              py::object grad_feat, py::object grad_reference, int threads) {
  const bool own_reference = grad_reference.is_none();
  TensorView f(feat, "feat"), r(reference, "reference"), ip(i_pos, "i_pos"), in(i_neg, "i_neg"), wp(w_pos, "w_pos"), wn(w_neg, "w_neg"),
      gf(grad_feat, "grad_feat");
  const float* pf = f.data<float>({-1, -1});
  const int64_t n = f.size(0), d = f.size(1);
  const float* pr = r.data<float>({-1, d});
  const int64_t m = r.size(0);
  const int64_t *pip = ip.data<int64_t>({n}), *pin = in.data<int64_t>({n});
  const float *pwp = wp.data<float>({n}), *pwn = wn.data<float>({n});
  float* pgf = gf.data<float>({n, d});
  float* pgr = own_reference ? nullptr : TensorView(grad_reference, "grad_reference").data<float>({m, d});
  for (int64_t i = 0; i < n; ++i) {
    if (pip[i] >= m || pin[i] >= m) throw py::value_error("i_pos, i_neg: expected indices below " + std::to_string(m));
  }
  py::gil_scoped_release release;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, d));
  const Entries e = gather_entries(n, n, pip, pin, pwp, pwn, true, own_reference);
  parallel_for(n, grain, threads, [&](int64_t r0, int64_t r1) {
    VIFAST_DISPATCH(weighted_differences, pf, pr, d, r0, r1, e.begin.data(), e.partner.data(), e.weight.data(), pgf);
  });
  if (own_reference) return;
  const Entries back = gather_entries(m, n, pip, pin, pwp, pwn, false, true);
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
        py::arg("ref_sq"), py::arg("root"), py::arg("pos"), py::arg("neg"), py::arg("d_pos"), py::arg("d_neg"), py::arg("i_pos"),
        py::arg("i_neg"), py::arg("threads"), "Decides among the candidates by direct difference.");
  m.def("hard_backward", &backward, py::arg("feat"), py::arg("reference"), py::arg("i_pos"), py::arg("i_neg"), py::arg("w_pos"),
        py::arg("w_neg"), py::arg("grad_feat"), py::arg("grad_reference"), py::arg("threads"),
        "Weighted differences to the hard partners, summed per row in a fixed order.");
}

}  // namespace vifast
