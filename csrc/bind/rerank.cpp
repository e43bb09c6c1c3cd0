#include "../rerank.h"

#include <algorithm>
#include <limits>

#include "../parallel.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

constexpr int64_t kRowGrain = 64;  // sparse rows below which a second thread does not pay
constexpr int64_t kPairs = int64_t{1} << 31;

// What the calls write: the caller's arrays, checked as all others.
template <class T>
T* array(py::handle object, const char* name, std::initializer_list<int64_t> sizes) {
  return TensorView(object, name).data<T>(sizes);
}

Lists lists_of(py::handle lists, int64_t n) {
  TensorView view(lists, "lists");
  const int32_t* index = view.data<int32_t>({n, -1});
  const int64_t length = view.size(1);
  for (int64_t e = 0; e < n * length; ++e) {
    if (index[e] < 0 || index[e] >= n) throw py::value_error("lists: expected rows below " + std::to_string(n));
  }
  return {index, length};
}

// Rows of a set of entries; they must lie within `entries`.
void check_begin(const int64_t* begin, int64_t n, int64_t entries) {
  for (int64_t i = 0; i < n; ++i) {
    if (begin[i] < 0 || begin[i + 1] < begin[i]) throw py::value_error("begin: expected rising offsets");
  }
  if (begin[n] > entries) throw py::value_error("begin: reaches beyond the entries");
}

SparseRows sparse_of(py::handle begin, py::handle count, py::handle column, py::handle value, int64_t n, int64_t columns) {
  TensorView b(begin, "begin"), c(column, "column");
  const int64_t* pb = b.data<int64_t>({n + 1});
  const int32_t* pc = c.data<int32_t>({-1});
  const SparseRows rows{pb, array<int32_t>(count, "count", {n}), pc, array<float>(value, "value", {c.size(0)})};
  check_begin(pb, n, c.size(0));
  for (int64_t i = 0; i < n; ++i) {
    if (rows.count[i] < 0 || rows.count[i] > pb[i + 1] - pb[i]) throw py::value_error("count: reaches beyond the row");
    for (int64_t e = pb[i]; e < pb[i] + rows.count[i]; ++e) {
      if (pc[e] < 0 || pc[e] >= columns) throw py::value_error("column: expected columns below " + std::to_string(columns));
    }
  }
  return rows;
}

// slots None: only the largest distances are wanted.
bool fold_distances(py::object dist, bool by_columns, int64_t first, int64_t k, py::object slots, py::object count,
                    py::object worst, py::object most, int threads) {
  TensorView d(dist, "dist");
  const float* x = d.data<float>({-1, -1});
  const int64_t rows = d.size(0), cols = d.size(1), n = by_columns ? cols : rows;
  if (first < 0 || first + rows + cols >= kPairs) throw py::value_error("first: expected rows below 2^31");
  NearestState state{k, 0, nullptr, nullptr, nullptr};
  if (!slots.is_none()) {
    TensorView s(slots, "slots");
    state.slot = reinterpret_cast<Neighbour*>(s.data<int64_t>({n, -1}));
    state.room = s.size(1);
    if (k < 1 || state.room <= k) throw py::value_error("slots: expected room for more than k = " + std::to_string(k));
    state.count = array<int32_t>(count, "count", {n});
    state.worst = array<float>(worst, "worst", {n});
  }
  float* pm = array<float>(most, "most", {n});
  py::gil_scoped_release release;
  return nearest_fold(x, rows, cols, by_columns, first, state, pm, threads);
}

void finish_lists(py::object slots, py::object count, int64_t fill, py::object lists, int threads) {
  static_assert(sizeof(Neighbour) == sizeof(int64_t));
  TensorView s(slots, "slots"), l(lists, "lists");
  const int64_t n = s.size(0);
  const NearestState state{0, s.size(1), reinterpret_cast<Neighbour*>(s.data<int64_t>({n, -1})),
                           array<int32_t>(count, "count", {n}), nullptr};
  int32_t* pl = l.data<int32_t>({n, -1});
  const int64_t length = l.size(1);
  py::gil_scoped_release release;
  parallel_for(n, kRowGrain, threads, [&](int64_t r0, int64_t r1) { nearest_finish(state, fill, r0, r1, pl, length); });
}

// The `k` smallest of every row of dist, in order, ties by lower column.
void smallest(py::object dist, int64_t k, py::object value, py::object index, int threads) {
  TensorView d(dist, "dist");
  const float* x = d.data<float>({-1, -1});
  const int64_t n = d.size(0), cols = d.size(1), room = 2 * k + 64;
  if (k < 1 || k > cols) throw py::value_error("k: expected 1 to " + std::to_string(cols) + ", got " + std::to_string(k));
  float* pv = array<float>(value, "value", {n, k});
  int64_t* pi = array<int64_t>(index, "index", {n, k});
  py::gil_scoped_release release;
  parallel_for(n, 1, threads, [&](int64_t r0, int64_t r1) {
    std::vector<Neighbour> slot(room);
    std::vector<int32_t> list(k);
    for (int64_t r = r0; r < r1; ++r) {
      int32_t count = 0;
      float worst = std::numeric_limits<float>::infinity(), most = 0;
      const NearestState state{k, room, slot.data(), &count, &worst};
      nearest_fold(x + r * cols, 1, cols, false, 0, state, &most, 1);
      nearest_finish(state, 0, 0, 1, list.data(), k);
      for (int64_t j = 0; j < k; ++j) {
        pi[r * k + j] = list[j];
        pv[r * k + j] = x[r * cols + list[j]];
      }
    }
  });
}

TileDistance tile_distance_of(const std::string& metric) {
  const bool cosine = metric == "cosine", root = metric == "euclidean";
  if (!cosine && !root && metric != "sqeuclidean")
    throw py::value_error("metric: expected sqeuclidean, euclidean or cosine, got " + metric);
  return {cosine ? Metric::cosine : Metric::sqeuclidean, root};
}

template <class T>
RerankRows rows_of(py::handle rows, py::handle keyed, py::handle origin, const std::string& metric, int64_t num_query) {
  TensorView r(rows, "rows");
  const T* data = r.data<T>({-1, -1});
  const int64_t n = r.size(0), d = r.size(1);
  if (num_query < 1 || num_query >= n || n >= kPairs) throw py::value_error("num_query: expected rows of both sets");
  if (d < 1) throw py::value_error("rows: expected at least one column");
  const RowType type = sizeof(T) == 8 ? RowType::float64 : RowType::float32;
  const float* po = origin.is_none() ? nullptr : array<float>(origin, "origin", {d});
  return {{data, type, d}, array<float>(keyed, "keyed", {n, d}), n, num_query, tile_distance_of(metric), po};
}

// The tensors that a FeatureLists reads and writes live as long as it does.
template <class T>
struct HeldLists {
  py::object rows, keyed, origin, most, dist;
  int64_t length, n;
  std::unique_ptr<FeatureLists<T>> lists;
};

template <class T>
std::unique_ptr<HeldLists<T>> hold_lists(py::object rows, py::object keyed, py::object origin, const std::string& metric,
                                         int64_t num_query, bool queries_only, int64_t length, py::object most, py::object dist,
                                         int threads) {
  const RerankRows x = rows_of<T>(rows, keyed, origin, metric, num_query);
  if (length < 1 || length > x.n) throw py::value_error("length: expected 1 to " + std::to_string(x.n));
  float* pm = array<float>(most, "most", {x.n});
  float* pd = dist.is_none() ? nullptr : array<float>(dist, "dist", {num_query, x.n - num_query});
  std::unique_ptr<FeatureLists<T>> lists;
  {
    py::gil_scoped_release release;
    lists.reset(new FeatureLists<T>(x, queries_only, length, pm, pd, threads));
  }
  return std::unique_ptr<HeldLists<T>>(new HeldLists<T>{rows, keyed, origin, most, dist, length, x.n, std::move(lists)});
}

template <class T>
void fold_tile(HeldLists<T>& held, int64_t tile) {
  const int64_t tiles = held.lists->tiles();
  if (tile < 0 || tile >= tiles) throw py::value_error("tile: expected 0 to " + std::to_string(tiles - 1));
  py::gil_scoped_release release;
  held.lists->fold(tile);
}

template <class T>
void finish_tiles(HeldLists<T>& held, py::object lists) {
  int32_t* to = array<int32_t>(lists, "lists", {held.n, held.length});
  py::gil_scoped_release release;
  held.lists->finish(held.length, to);
}

// dist may be None.
template <class T>
void rerank_distances(py::object rows, py::object keyed, py::object origin, const std::string& metric, int64_t num_query,
                      int64_t first, py::object most, py::object dist, int threads) {
  const RerankRows x = rows_of<T>(rows, keyed, origin, metric, num_query);
  TensorView m(most, "most");
  float* pm = m.data<float>({-1});
  const int64_t last = first + m.size(0);
  if (first < 0 || last > num_query) throw py::value_error("first: expected rows of the queries");
  float* pd = dist.is_none() ? nullptr : array<float>(dist, "dist", {m.size(0), x.n - num_query});
  py::gil_scoped_release release;
  feature_distances(x, first, last, pm, pd, threads);
}

template <class T>
void rerank_entries(py::object rows, py::object keyed, py::object origin, const std::string& metric, int64_t num_query,
                    py::object begin, py::object column, py::object value, int threads) {
  const RerankRows x = rows_of<T>(rows, keyed, origin, metric, num_query);
  TensorView b(begin, "begin"), c(column, "column");
  const int64_t* pb = b.data<int64_t>({-1});
  const int64_t n = b.size(0) - 1;
  const int32_t* pc = c.data<int32_t>({-1});
  float* pv = array<float>(value, "value", {c.size(0)});
  if (n < 0 || n > x.n) throw py::value_error("begin: expected at most the rows");
  check_begin(pb, n, c.size(0));
  for (int64_t e = 0; e < c.size(0); ++e) {
    if (pc[e] < 0 || pc[e] >= x.n) throw py::value_error("column: expected rows below " + std::to_string(x.n));
  }
  py::gil_scoped_release release;
  parallel_for(n, 1, threads, [&](int64_t r0, int64_t r1) { feature_entries(x, r0, r1, pb, pc, pv); });
}

void reciprocal(py::object lists, int64_t width, py::object set, py::object count, int threads) {
  TensorView s(set, "set");
  const int64_t n = s.size(0);
  int32_t* ps = s.data<int32_t>({n, width});
  const Lists l = lists_of(lists, n);
  if (width < 1 || width > l.length) throw py::value_error("width: expected 1 to " + std::to_string(l.length));
  int32_t* pc = array<int32_t>(count, "count", {n});
  py::gil_scoped_release release;
  parallel_for(n, kRowGrain, threads, [&](int64_t r0, int64_t r1) { reciprocal_sets(l, width, r0, r1, ps, pc); });
}

// Sets of the first rows, as many as out_count has; column None: their sizes.
void expand(py::object wide, py::object wide_count, py::object narrow, py::object narrow_count, py::object begin,
            py::object out_count, py::object column, int threads) {
  TensorView w(wide, "wide"), s(narrow, "narrow"), o(out_count, "out_count");
  const int64_t n = w.size(0), rows = o.size(0);
  const Sets a{w.data<int32_t>({-1, -1}), array<int32_t>(wide_count, "wide_count", {n}), w.size(1)};
  const Sets b{s.data<int32_t>({n, -1}), array<int32_t>(narrow_count, "narrow_count", {n}), s.size(1)};
  int32_t* po = o.data<int32_t>({rows});
  if (rows > n) throw py::value_error("out_count: expected at most the rows of wide");
  for (const Sets* sets : {&a, &b}) {
    for (int64_t i = 0; i < n; ++i) {
      if (sets->count[i] < 0 || sets->count[i] > sets->width) throw py::value_error("count: expected sizes of the sets");
      for (int64_t k = 0; k < sets->count[i]; ++k) {
        const int32_t member = sets->member[i * sets->width + k];
        if (member < 0 || member >= n) throw py::value_error("wide, narrow: expected members below " + std::to_string(n));
      }
    }
  }
  const int64_t* pb = nullptr;
  int32_t* pc = nullptr;
  if (!column.is_none()) {
    TensorView c(column, "column");
    pb = array<int64_t>(begin, "begin", {rows + 1});
    pc = c.data<int32_t>({-1});
    check_begin(pb, rows, c.size(0));
    for (int64_t i = 0; i < rows; ++i) {
      if (pb[i + 1] - pb[i] != po[i]) throw py::value_error("begin: expected the offsets of out_count");
    }
  }
  py::gil_scoped_release release;
  parallel_for(rows, kRowGrain, threads, [&](int64_t r0, int64_t r1) { expanded_sets(a, b, n, r0, r1, pb, po, pc); });
}

void normalise(py::object begin, py::object value, bool half, int threads) {
  TensorView b(begin, "begin"), v(value, "value");
  const int64_t* pb = b.data<int64_t>({-1});
  const int64_t n = b.size(0) - 1;
  float* pv = v.data<float>({-1});
  check_begin(pb, n, v.size(0));
  py::gil_scoped_release release;
  parallel_for(n, kRowGrain, threads, [&](int64_t r0, int64_t r1) {
    half ? normalise_rows<true>(pb, r0, r1, pv) : normalise_rows<false>(pb, r0, r1, pv);
  });
}

// weight None: the mean.
void combine(py::object begin, py::object count, py::object column, py::object value, py::object lists, int64_t k,
             py::object weight, bool half, py::object out_begin, py::object out_count, py::object out_column,
             py::object out_value, int threads) {
  const int64_t n = TensorView(count, "count").size(0);
  const Lists l = lists_of(lists, n);
  if (k < 1 || k > l.length)
    throw py::value_error("k: expected 1 to " + std::to_string(l.length) + ", got " + std::to_string(k));
  const SparseRows v = sparse_of(begin, count, column, value, n, n);
  const float* pw = weight.is_none() ? nullptr : array<float>(weight, "weight", {n, k});
  TensorView oc(out_column, "out_column");
  const SparseOut out{array<int64_t>(out_begin, "out_begin", {n + 1}), array<int32_t>(out_count, "out_count", {n}),
                      oc.data<int32_t>({-1}), array<float>(out_value, "out_value", {oc.size(0)})};
  check_begin(out.begin, n, oc.size(0));
  for (int64_t i = 0; i < n; ++i) {
    int64_t room = 0;
    for (int64_t j = 0; j < k; ++j) room += v.count[l.index[i * l.length + j]];
    if (out.begin[i + 1] - out.begin[i] < std::min(room, n))
      throw py::value_error("out_begin: expected room for the neighbours' entries");
  }
  py::gil_scoped_release release;
  parallel_for(n, kRowGrain, threads, [&](int64_t r0, int64_t r1) {
    half ? combine_rows<true>(v, n, l, k, pw, r0, r1, out) : combine_rows<false>(v, n, l, k, pw, r0, r1, out);
  });
}

void invert(py::object begin, py::object count, py::object column, py::object value, int64_t first, py::object out_begin,
            py::object out_row, py::object out_value) {
  const int64_t n = TensorView(count, "count").size(0);
  TensorView ob(out_begin, "out_begin"), orow(out_row, "out_row");
  int64_t* pb = ob.data<int64_t>({-1});
  const int64_t columns = ob.size(0) - 1;
  const SparseRows v = sparse_of(begin, count, column, value, n, columns);
  if (first < 0 || first > n) throw py::value_error("first: expected a row");
  int64_t entries = 0;
  for (int64_t i = first; i < n; ++i) entries += v.count[i];
  int32_t* pr = orow.data<int32_t>({entries});
  float* pv = array<float>(out_value, "out_value", {entries});
  py::gil_scoped_release release;
  invert_rows(v, first, n, columns, pb, pr, pv);
}

// One block of queries against the gallery. most None: 1 - the dot product of the rows instead of the blended distance.
void compare(py::object begin, py::object count, py::object column, py::object value, py::object inverted_begin,
             py::object inverted_row, py::object inverted_value, py::object most, float jaccard, float original, bool half,
             int64_t first, py::object dist, int threads) {
  const int64_t n = TensorView(count, "count").size(0);
  TensorView ib(inverted_begin, "inverted_begin"), ir(inverted_row, "inverted_row"), d(dist, "dist");
  const int64_t* pb = ib.data<int64_t>({-1});
  const int64_t columns = ib.size(0) - 1;
  const SparseRows v = sparse_of(begin, count, column, value, n, columns);
  float* pd = d.data<float>({-1, -1});
  const Inverted gallery{pb, ir.data<int32_t>({-1}), array<float>(inverted_value, "inverted_value", {ir.size(0)}), d.size(1)};
  check_begin(pb, columns, ir.size(0));
  for (int64_t e = 0; e < ir.size(0); ++e) {
    if (gallery.row[e] < 0 || gallery.row[e] >= gallery.rows) throw py::value_error("inverted_row: expected columns of dist");
  }
  const int64_t rows = d.size(0);
  if (first < 0 || first + rows > n) throw py::value_error("first: expected rows of the queries");
  const float* pm = most.is_none() ? nullptr : array<float>(most, "most", {n});
  const Blend blend{jaccard, original};
  py::gil_scoped_release release;
  parallel_for(rows, 1, threads, [&](int64_t r0, int64_t r1) {
    if (pm == nullptr) return dot_rows(v, gallery, first, r0, r1, pd);
    half ? jaccard_rows<true>(v, gallery, blend, pm, first, r0, r1, pd)
         : jaccard_rows<false>(v, gallery, blend, pm, first, r0, r1, pd);
  });
}

template <class T>
void define_features(py::module_& m, const std::string& type) {
  py::class_<HeldLists<T>>(m, ("RerankLists_" + type).c_str())
      .def(py::init(&hold_lists<T>), py::arg("rows"), py::arg("keyed"), py::arg("origin"), py::arg("metric"),
           py::arg("num_query"), py::arg("queries_only"), py::arg("length"), py::arg("most"), py::arg("dist"), py::arg("threads"),
           "Nearest rows and largest distance of every row, and the distances of queries to the gallery, of tiles of pairs.")
      .def_property_readonly("tiles", [](const HeldLists<T>& held) { return held.lists->tiles(); })
      .def("fold", &fold_tile<T>, py::arg("tile"), "Every tile once, by rising number.")
      .def("finish", &finish_tiles<T>, py::arg("lists"), "Writes the lists in order.");
  m.def(("rerank_distances_" + type).c_str(), &rerank_distances<T>, py::arg("rows"), py::arg("keyed"), py::arg("origin"),
        py::arg("metric"), py::arg("num_query"), py::arg("first"), py::arg("most"), py::arg("dist"), py::arg("threads"),
        "Distances of a block of queries to the gallery, and the largest of every row.");
  m.def(("rerank_entries_" + type).c_str(), &rerank_entries<T>, py::arg("rows"), py::arg("keyed"), py::arg("origin"),
        py::arg("metric"), py::arg("num_query"), py::arg("begin"), py::arg("column"), py::arg("value"), py::arg("threads"),
        "Distances of rows to the columns listed for them.");
}

}  // namespace

void bind_rerank(py::module_& m) {
  define_features<float>(m, "float32");
  define_features<double>(m, "float64");
  m.def("rerank_fold", &fold_distances, py::arg("dist"), py::arg("by_columns"), py::arg("first"), py::arg("k"),
        py::arg("slots"), py::arg("count"), py::arg("worst"), py::arg("most"), py::arg("threads"),
        "Folds a block of distances into lists and largest values; False where one is not finite.");
  m.def("rerank_finish", &finish_lists, py::arg("slots"), py::arg("count"), py::arg("fill"), py::arg("lists"),
        py::arg("threads"), "Writes the lists in order.");
  m.def("smallest", &smallest, py::arg("dist"), py::arg("k"), py::arg("value"), py::arg("index"), py::arg("threads"),
        "The k smallest of every row in order, ties by lower column.");
  m.def("rerank_reciprocal", &reciprocal, py::arg("lists"), py::arg("width"), py::arg("set"), py::arg("count"),
        py::arg("threads"), "Reciprocal neighbours of every row.");
  m.def("rerank_expand", &expand, py::arg("wide"), py::arg("wide_count"), py::arg("narrow"), py::arg("narrow_count"),
        py::arg("begin"), py::arg("out_count"), py::arg("column"), py::arg("threads"),
        "Expanded reciprocal sets, or their sizes.");
  m.def("rerank_normalise", &normalise, py::arg("begin"), py::arg("value"), py::arg("half"), py::arg("threads"),
        "Divides the values of every row by their sum.");
  m.def("rerank_combine", &combine, py::arg("begin"), py::arg("count"), py::arg("column"), py::arg("value"), py::arg("lists"),
        py::arg("k"), py::arg("weight"), py::arg("half"), py::arg("out_begin"), py::arg("out_count"), py::arg("out_column"),
        py::arg("out_value"), py::arg("threads"), "Weighted sum or mean of the rows of every row's neighbours.");
  m.def("rerank_invert", &invert, py::arg("begin"), py::arg("count"), py::arg("column"), py::arg("value"), py::arg("first"),
        py::arg("out_begin"), py::arg("out_row"), py::arg("out_value"), "Entries of the rows from `first` by column.");
  m.def("rerank_compare", &compare, py::arg("begin"), py::arg("count"), py::arg("column"), py::arg("value"),
        py::arg("inverted_begin"), py::arg("inverted_row"), py::arg("inverted_value"), py::arg("most"), py::arg("jaccard"),
        py::arg("original"), py::arg("half"), py::arg("first"), py::arg("dist"), py::arg("threads"),
        "Re-ranked distances of a block of queries, in place.");
}

}  // namespace vifast
