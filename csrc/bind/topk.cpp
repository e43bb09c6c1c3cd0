#include "../topk.h"

#include <algorithm>
#include <atomic>

#include "../parallel.h"
#include "bind.h"
#include "search_types.h"

namespace vifast {

namespace {

constexpr int64_t kWords = sizeof(Candidate) / sizeof(int64_t);

TopkState state_of(py::handle slots, py::handle count, py::handle worst, int64_t n, int64_t k) {
  TensorView s(slots, "slots"), c(count, "count"), w(worst, "worst");
  auto* first = reinterpret_cast<Candidate*>(s.data<int64_t>({n, -1, kWords}));
  if (s.size(1) <= k) throw py::value_error("slots: expected room for more than k = " + std::to_string(k) + " candidates");
  return {k, s.size(1), first, c.data<int64_t>({n}), w.data<double>({n})};
}

void norms_of(py::object rows, py::object norm, int threads) {
  TensorView r(rows, "rows"), n(norm, "norm");
  const float* pr = r.data<float>({-1, -1});
  const int64_t count = r.size(0), d = r.size(1);
  double* pn = n.data<double>({count});
  py::gil_scoped_release release;
  parallel_for(count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, d)), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(topk_norms, pr, d, r0, r1, pn); });
}

void round_rows(py::object rows, py::object half, py::object norm, py::object lost, int threads) {
  TensorView r(rows, "rows"), h(half, "half"), n(norm, "norm"), l(lost, "lost");
  const float* pr = r.data<float>({-1, -1});
  const int64_t count = r.size(0), d = r.size(1);
  auto* ph = reinterpret_cast<uint16_t*>(h.data<BFloat16Bits>({count, d}));
  double *pn = n.data<double>({count}), *pl = l.data<double>({count});
  py::gil_scoped_release release;
  parallel_for(count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, d)), threads,
               [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(topk_round, pr, d, r0, r1, ph, pn, pl); });
}

// Products of bfloat16 in hardware: elsewhere they are slower than those of float32.
bool multiplies_bfloat16() {
#if VIFAST_X86
  return __builtin_cpu_supports("avx512bf16") || __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

// R: type of the gallery's rows, Q: of the queries. query_lost and lost: for a bfloat16 tile, else None.
template <class R, class Q>
int64_t fold(py::object tile, int64_t first, const std::string& metric, py::object query, py::object query_norm, py::object query_lost,
             py::object gallery, py::object norm, py::object lost, py::object exclude, int64_t k, py::object slots, py::object count,
             py::object worst, int threads) {
  TensorView t(tile, "tile"), q(query, "query"), qn(query_norm, "query_norm"), g(gallery, "gallery"), nv(norm, "norm");
  const bool half = t.is<BFloat16Bits>();
  const TopkTile products{half ? static_cast<const void*>(t.data<BFloat16Bits>({-1, -1})) : t.data<float>({-1, -1}), half};
  const int64_t n = t.size(0), cols = t.size(1);
  const Q* pq = q.data<Q>({n, -1});
  const Rows rows{g.data<R>({-1, q.size(1)}), row_type<R>(), q.size(1)};
  const Metric m = metric_of(metric);
  if (first < 0 || first + cols > g.size(0)) throw py::value_error("tile: reaches beyond the gallery");
  const uint8_t* pe =
      exclude.is_none() ? nullptr : reinterpret_cast<const uint8_t*>(TensorView(exclude, "exclude").data<bool>({n, cols}));
  auto lost_of = [half](py::handle of, const char* name, int64_t size) {
    return half ? TensorView(of, name).data<double>({size}) : nullptr;
  };
  const RowNorms own{qn.data<double>({n}), lost_of(query_lost, "query_lost", n)};
  const TopkColumns columns(m, {nv.data<double>({cols}), lost_of(lost, "lost", cols)}, first, cols, pe);
  const TopkState state = state_of(slots, count, worst, n, k);
  py::gil_scoped_release release;
  std::atomic<int64_t> scored{0};
  parallel_for(n, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, cols)), threads,
               [&](int64_t q0, int64_t q1) { scored += topk_fold(products, columns, m, pq, own, rows, q0, q1, state); });
  return scored;
}

template <class R, class Q>
void finish(const std::string& metric, py::object query, py::object gallery, int64_t k, py::object slots, py::object count,
            py::object worst, py::object key, py::object index, int threads) {
  TensorView q(query, "query"), g(gallery, "gallery"), kv(key, "key"), iv(index, "index");
  const Q* pq = q.data<Q>({-1, -1});
  const int64_t n = q.size(0);
  const Rows rows{g.data<R>({-1, q.size(1)}), row_type<R>(), q.size(1)};
  const TopkState state = state_of(slots, count, worst, n, k);
  double* pk = kv.data<double>({n, k});
  int64_t* pi = iv.data<int64_t>({n, k});
  const Metric m = metric_of(metric);
  py::gil_scoped_release release;
  parallel_for(n, 1, threads, [&](int64_t q0, int64_t q1) { topk_finish(m, pq, rows, q0, q1, state, pk, pi); });
}

template <class R, class Q>
void define(py::module_& m, const std::string& type) {
  m.def(("topk_fold_" + type).c_str(), &fold<R, Q>, py::arg("tile"), py::arg("first"), py::arg("metric"), py::arg("query"),
        py::arg("query_norm"), py::arg("query_lost"), py::arg("gallery"), py::arg("norm"), py::arg("lost"), py::arg("exclude"),
        py::arg("k"), py::arg("slots"), py::arg("count"), py::arg("worst"), py::arg("threads"),
        "Folds a tile of products into the candidates; returns how many had to be scored.");
  m.def(("topk_finish_" + type).c_str(), &finish<R, Q>, py::arg("metric"), py::arg("query"), py::arg("gallery"), py::arg("k"),
        py::arg("slots"), py::arg("count"), py::arg("worst"), py::arg("key"), py::arg("index"), py::arg("threads"),
        "Scores the candidates in float64 and writes the best k in order.");
}

}  // namespace

void bind_topk(py::module_& m) {
  m.attr("TOPK_WORDS") = kWords;
  m.def("row_norms", &norms_of, py::arg("rows"), py::arg("norm"), py::arg("threads"), "Norms of float32 rows, accumulated in float64.");
  m.def("round_rows", &round_rows, py::arg("rows"), py::arg("half"), py::arg("norm"), py::arg("lost"), py::arg("threads"),
        "Float32 rows rounded to bfloat16, their norms, and the norms of what the rounding took away.");
  m.def("multiplies_bfloat16", &multiplies_bfloat16);
  define<float, float>(m, "float32");
  define<double, double>(m, "float64");
  define<Float16Bits, float>(m, "float16");
  define<BFloat16Bits, float>(m, "bfloat16");
}

}  // namespace vifast
