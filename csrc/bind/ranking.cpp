#include "../ranking.h"

#include <algorithm>
#include <vector>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

// Gallery rows grouped by identity code, each group rising.
struct Groups {
  std::vector<int64_t> begin, row;
  Groups(const int32_t* identity, int64_t n, int64_t identities) : begin(identities + 1, 0), row(n) {
    for (int64_t j = 0; j < n; ++j) ++begin[identity[j] + 1];
    for (int64_t i = 0; i < identities; ++i) begin[i + 1] += begin[i];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t j = 0; j < n; ++j) row[next[identity[j]]++] = j;
  }
};

int64_t codes_end(const int32_t* codes, int64_t n, const char* name) {
  int32_t end = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (codes[i] < 0) throw py::value_error(std::string(name) + ": expected codes from 0, got " + std::to_string(codes[i]));
    end = std::max(end, codes[i] + 1);
  }
  return end;
}

// Results are [n], or [n, trials] where `member` tells the columns of trials.
template <class T>
void fold(py::object keys, py::object scale, py::object bias, py::object query_identity, py::object gallery_identity,
          py::object drop_camera, py::object gallery_camera, bool own_only, bool per_identity, int64_t limit, py::object member,
          py::object ap, py::object inp, py::object first, int threads) {
  TensorView k(keys, "keys"), qi(query_identity, "query_identity"), gi(gallery_identity, "gallery_identity"),
      dc(drop_camera, "drop_camera"), gc(gallery_camera, "gallery_camera"), a(ap, "ap"), i(inp, "inp"), f(first, "first");
  RankKeys<T> values{k.data<T>({-1, -1}), nullptr, nullptr};
  const int64_t n = k.size(0), size = k.size(1);
  if (!scale.is_none()) {
    values.scale = TensorView(scale, "scale").data<T>({size});
    values.bias = TensorView(bias, "bias").data<T>({size});
  }
  RankTrials trials{0, nullptr};
  RankResult out{};
  if (member.is_none()) {
    out = {a.data<double>({n}), i.data<double>({n}), f.data<int64_t>({n})};
  } else {
    out = {a.data<double>({n, -1}), nullptr, nullptr};
    trials = {a.size(1), TensorView(member, "member").data<int32_t>({size})};
    if (trials.trials > kTrials) throw py::value_error("ap: expected at most 16 trials, got " + std::to_string(trials.trials));
    out.inp = i.data<double>({n, trials.trials});
    out.first = f.data<int64_t>({n, trials.trials});
  }
  const RankQueries queries{qi.data<int32_t>({n}), dc.data<int32_t>({n}), own_only, per_identity, limit};
  const int32_t *pgi = gi.data<int32_t>({size}), *pgc = gc.data<int32_t>({size});
  const int64_t identities =
      std::max(codes_end(pgi, size, "gallery_identity"), codes_end(queries.identity, n, "query_identity"));
  py::gil_scoped_release release;
  const Groups groups(pgi, size, identities);
  const RankGallery gallery{size, pgi, pgc, groups.begin.data(), groups.row.data(), identities};
  parallel_for(n, std::max<int64_t>(1, (1 << 12) / std::max<int64_t>(1, size)), threads,
               [&](int64_t q0, int64_t q1) {
                 if (trials.member) {
                   rank_trial_rows<T>(values, gallery, trials, queries, q0, q1, out);
                 } else {
                   rank_rows<T>(values, gallery, queries, q0, q1, out);
                 }
               });
}

// Ranks of query q are ranks[begin[q]] .. ranks[begin[q + 1] - 1]; they come back sorted.
void summary(py::object ranks, py::object begin, py::object ap, py::object inp) {
  TensorView r(ranks, "ranks"), b(begin, "begin"), a(ap, "ap"), i(inp, "inp");
  int64_t* pr = r.data<int64_t>({-1});
  const int64_t* pb = b.data<int64_t>({-1});
  const int64_t n = b.size(0) - 1;
  double *pa = a.data<double>({n}), *pi = i.data<double>({n});
  for (int64_t q = 0; q < n; ++q) {
    if (pb[q] < 0 || pb[q + 1] < pb[q] || pb[q + 1] > r.size(0)) throw py::value_error("begin: expected rising offsets into ranks");
    rank_summary(pr + pb[q], pb[q + 1] - pb[q], pa + q, pi + q);
  }
}

}  // namespace

void bind_ranking(py::module_& m) {
  const auto define = [&](const char* name, auto function) {
    m.def(name, function, py::arg("keys"), py::arg("scale"), py::arg("bias"), py::arg("query_identity"), py::arg("gallery_identity"),
          py::arg("drop_camera"), py::arg("gallery_camera"), py::arg("own_only"), py::arg("per_identity"), py::arg("limit"),
          py::arg("member"), py::arg("ap"), py::arg("inp"), py::arg("first"), py::arg("threads"),
          "Average precision, inverse negative penalty and first hit of every row of keys.");
  };
  define("rank_fold_float32", &fold<float>);
  define("rank_fold_float64", &fold<double>);
  m.def("rank_summary", &summary, py::arg("ranks"), py::arg("begin"), py::arg("ap"), py::arg("inp"),
        "Average precision and inverse negative penalty of every query from the ranks of its positives.");
}

}  // namespace vifast
