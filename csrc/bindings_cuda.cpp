// vifast.kernels._CUDA: CUDA C++ for what Triton expresses badly, over DLPack views of device memory. Workspace is allocated
// by the caller; `stream` is the integer of torch.cuda.current_stream().cuda_stream, and nothing waits for the device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bind/search_types.h"
#include "ranking_cuda.h"
#include "rerank_cuda.h"
#include "topk.h"
#include "topk_cuda.h"

namespace vifast {

namespace {

template <class T>
void rank_count(py::object keys, py::object query_identity, py::object gallery_identity, py::object drop_camera,
                py::object gallery_camera, bool own_only, py::object begin, py::object row, py::object slot, py::object rank,
                py::object first, py::object seen, uintptr_t stream) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TensorView k(keys, "keys"), qi(query_identity, "query_identity"), gi(gallery_identity, "gallery_identity"),
      dc(drop_camera, "drop_camera"), gc(gallery_camera, "gallery_camera"), b(begin, "begin"), r(row, "row"), s(slot, "slot"), out(rank, "rank"), f(first, "first");
  const T* pk = k.data<T>({-1, -1}, kGpu);
  const int64_t n = k.size(0), size = k.size(1);
  RankJob job{n, size, qi.data<int32_t>({n}, kGpu), gi.data<int32_t>({size}, kGpu), dc.data<int32_t>({n}, kGpu),
              gc.data<int32_t>({size}, kGpu), own_only, b.data<int64_t>({-1}, kGpu), r.data<int64_t>({size}, kGpu),
              s.data<int64_t>({n + 1}, kGpu), out.data<int64_t>({-1}, kGpu), f.data<int64_t>({n}, kGpu), nullptr, 0};
  if (!seen.is_none()) {
    TensorView bits(seen, "seen");
    job.seen = reinterpret_cast<uint32_t*>(bits.data<int32_t>({n, -1}, kGpu));
    job.words = bits.size(1);
    if (job.words * 32 < b.size(0) - 1) throw py::value_error("seen: expected a bit per identity");
  }
  const char* error = rank_count_cuda<T>(pk, job, k.device_id(), reinterpret_cast<void*>(stream));
  if (error != nullptr) throw std::runtime_error(std::string("rank_count: ") + error);
}

// Tensor cores cut what float32 sums would round.
constexpr double kTensorCoreGrowth = 4;

// What both kernels need of the state of n queries.
template <class R, class Q>
TopkJob topk_job(const TensorView& query, const TensorView& gallery, int64_t k, const TensorView& key, const TensorView& index,
                 const TensorView& count, const TensorView& settled) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TopkJob job{};
  job.query = query.data<Q>({-1, -1}, kGpu);
  job.n = query.size(0), job.d = query.size(1), job.k = k;
  job.gallery = gallery.data<R>({-1, job.d}, kGpu);
  job.key = key.data<double>({job.n, -1}, kGpu);
  job.room = key.size(1);
  job.index = index.data<int64_t>({job.n, job.room}, kGpu);
  job.count = count.data<int32_t>({job.n}, kGpu);
  job.settled = settled.data<int32_t>({job.n}, kGpu);
  if (k < 1 || job.room < k + kTopkBlock || (job.room & (job.room - 1)) != 0) {
    throw py::value_error("key: expected a power of two of at least k + " + std::to_string(kTopkBlock) + " candidates");
  }
  return job;
}

template <class R, class Q>
void topk_fold_gpu(py::object tile, int64_t first, const std::string& metric, py::object query, py::object query_norm, py::object query_lost,
                   py::object gallery, py::object norm, py::object lost, py::object exclude, int64_t k, py::object key, py::object index,
                   py::object count, py::object settled, uintptr_t stream) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TensorView t(tile, "tile"), q(query, "query"), qn(query_norm, "query_norm"), ql(query_lost, "query_lost"), g(gallery, "gallery"),
      nv(norm, "norm"), lv(lost, "lost");
  TopkJob job = topk_job<R, Q>(q, g, k, TensorView(key, "key"), TensorView(index, "index"), TensorView(count, "count"),
                               TensorView(settled, "settled"));
  job.tile = t.data<float>({job.n, -1}, kGpu);
  job.cols = t.size(1), job.first = first;
  if (first < 0 || first + job.cols > g.size(0)) throw py::value_error("tile: reaches beyond the gallery");
  job.error = key_error(metric_of(metric), job.d, kTensorCoreGrowth);
  job.query_norm = qn.data<double>({job.n}, kGpu);
  job.query_lost = ql.data<double>({job.n}, kGpu);
  job.norm = nv.data<double>({job.cols}, kGpu);
  job.lost = lv.data<double>({job.cols}, kGpu);
  if (!exclude.is_none()) {
    job.exclude = reinterpret_cast<const uint8_t*>(TensorView(exclude, "exclude").data<bool>({job.n, job.cols}, kGpu));
  }
  const char* error = topk_fold_cuda(job, row_type<R>(), q.device_id(), reinterpret_cast<void*>(stream));
  if (error != nullptr) throw std::runtime_error(std::string("topk_fold: ") + error);
}

template <class R, class Q>
void topk_finish_gpu(const std::string& metric, py::object query, py::object gallery, int64_t k, py::object key, py::object index, py::object count,
                     py::object settled, uintptr_t stream) {
  const TensorView q(query, "query");
  TopkJob job = topk_job<R, Q>(q, TensorView(gallery, "gallery"), k, TensorView(key, "key"), TensorView(index, "index"),
                               TensorView(count, "count"), TensorView(settled, "settled"));
  job.error.metric = metric_of(metric);
  const char* error = topk_finish_cuda(job, row_type<R>(), q.device_id(), reinterpret_cast<void*>(stream));
  if (error != nullptr) throw std::runtime_error(std::string("topk_finish: ") + error);
}

template <class R, class Q>
void define_topk(py::module_& m, const std::string& type) {
  m.def(("topk_fold_" + type).c_str(), &topk_fold_gpu<R, Q>, py::arg("tile"), py::arg("first"), py::arg("metric"), py::arg("query"),
        py::arg("query_norm"), py::arg("query_lost"), py::arg("gallery"), py::arg("norm"), py::arg("lost"), py::arg("exclude"),
        py::arg("k"), py::arg("key"), py::arg("index"), py::arg("count"), py::arg("settled"), py::arg("stream"),
        "Folds a tile of products into the candidates of every query.");
  m.def(("topk_finish_" + type).c_str(), &topk_finish_gpu<R, Q>, py::arg("metric"), py::arg("query"), py::arg("gallery"), py::arg("k"),
        py::arg("key"), py::arg("index"), py::arg("count"), py::arg("settled"), py::arg("stream"),
        "Scores the candidates in float64 and puts the best k first, in order.");
}

void checked(const char* name, const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string(name) + ": " + error);
}

void rerank_reciprocal(py::object lists, int64_t width, py::object set, py::object count, uintptr_t stream) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TensorView l(lists, "lists"), s(set, "set"), c(count, "count");
  const int32_t* pl = l.data<int32_t>({-1, -1}, kGpu);
  const int64_t n = l.size(0), length = l.size(1);
  if (width < 1 || width > length) throw py::value_error("width: expected 1 to " + std::to_string(length));
  checked("rerank_reciprocal", reciprocal_cuda(pl, n, length, width, s.data<int32_t>({n, width}, kGpu), c.data<int32_t>({n}, kGpu),
                                               l.device_id(), reinterpret_cast<void*>(stream)));
}

void rerank_joins(py::object wide, py::object wide_count, py::object narrow, py::object narrow_count, py::object joins, uintptr_t stream) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TensorView w(wide, "wide"), s(narrow, "narrow"), j(joins, "joins");
  JoinJob job{};
  job.wide = w.data<int32_t>({-1, -1}, kGpu);
  job.wide_width = w.size(1);
  job.wide_count = TensorView(wide_count, "wide_count").data<int32_t>({w.size(0)}, kGpu);
  job.narrow = s.data<int32_t>({w.size(0), -1}, kGpu);
  job.narrow_width = s.size(1);
  job.narrow_count = TensorView(narrow_count, "narrow_count").data<int32_t>({w.size(0)}, kGpu);
  job.joins = reinterpret_cast<uint8_t*>(j.data<bool>({-1, job.wide_width}, kGpu));
  job.rows = j.size(0);
  if (job.rows > w.size(0)) throw py::value_error("joins: expected at most the rows of wide");
  checked("rerank_joins", joins_cuda(job, w.device_id(), reinterpret_cast<void*>(stream)));
}

void rerank_jaccard(py::object begin, py::object column, py::object value, py::object by_column, py::object row, py::object held,
                    py::object most, float jaccard, float original, py::object dist, uintptr_t stream) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TensorView d(dist, "dist"), c(column, "column"), b(by_column, "by_column"), r(row, "row");
  JaccardJob job{};
  job.dist = d.data<float>({-1, -1}, kGpu);
  job.queries = d.size(0), job.gallery = d.size(1);
  job.begin = TensorView(begin, "begin").data<int64_t>({job.queries + 1}, kGpu);
  job.column = c.data<int32_t>({-1}, kGpu);
  job.value = TensorView(value, "value").data<float>({c.size(0)}, kGpu);
  job.by_column = b.data<int64_t>({-1}, kGpu);
  job.row = r.data<int32_t>({-1}, kGpu);
  job.held = TensorView(held, "held").data<float>({r.size(0)}, kGpu);
  job.most = TensorView(most, "most").data<float>({job.queries}, kGpu);
  job.blend = {jaccard, original};
  checked("rerank_jaccard", jaccard_cuda(job, d.device_id(), reinterpret_cast<void*>(stream)));
}

}  // namespace

}  // namespace vifast

PYBIND11_MODULE(_CUDA, m) {
  namespace py = pybind11;
  m.doc() = "CUDA arithmetic of vifast.";
  const auto define = [&](const char* name, auto function) {
    m.def(name, function, py::arg("keys"), py::arg("query_identity"), py::arg("gallery_identity"), py::arg("drop_camera"),
          py::arg("gallery_camera"), py::arg("own_only"), py::arg("begin"), py::arg("row"), py::arg("slot"), py::arg("rank"),
          py::arg("first"), py::arg("seen"), py::arg("stream"), "Ranks of the positives of every row of keys, and first hits.");
  };
  define("rank_count_float32", &vifast::rank_count<float>);
  define("rank_count_float64", &vifast::rank_count<double>);
  m.attr("TOPK_BLOCK") = vifast::kTopkBlock;
  vifast::define_topk<float, float>(m, "float32");
  vifast::define_topk<double, double>(m, "float64");
  vifast::define_topk<vifast::Float16Bits, float>(m, "float16");
  vifast::define_topk<vifast::BFloat16Bits, float>(m, "bfloat16");
  m.def("rerank_reciprocal", &vifast::rerank_reciprocal, py::arg("lists"), py::arg("width"), py::arg("set"), py::arg("count"),
        py::arg("stream"), "Reciprocal neighbours of every row.");
  m.def("rerank_joins", &vifast::rerank_joins, py::arg("wide"), py::arg("wide_count"), py::arg("narrow"), py::arg("narrow_count"),
        py::arg("joins"), py::arg("stream"), "Which members of every row's set add their own.");
  m.def("rerank_jaccard", &vifast::rerank_jaccard, py::arg("begin"), py::arg("column"), py::arg("value"), py::arg("by_column"),
        py::arg("row"), py::arg("held"), py::arg("most"), py::arg("jaccard"), py::arg("original"), py::arg("dist"), py::arg("stream"),
        "Re-ranked distances of a block of queries, in place.");
}
