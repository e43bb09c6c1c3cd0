#include <algorithm>

#include "../parallel.h"
#include "../ranking.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

int64_t shard_grain(int64_t size) { return std::max<int64_t>(1, (1 << 12) / std::max<int64_t>(1, size)); }

RankSlots slots_of(py::handle begin, py::handle row, int64_t n) {
  TensorView b(begin, "begin"), r(row, "row");
  const RankSlots slots{b.data<int64_t>({n + 1}), r.data<int64_t>({-1})};
  for (int64_t q = 0; q < n; ++q) {
    const bool rising = slots.begin[q] >= 0 && slots.begin[q + 1] >= slots.begin[q];
    if (!rising) throw py::value_error("begin: expected rising offsets into row");
  }
  if (slots.begin[n] != r.size(0)) throw py::value_error("begin: expected to end at the length of row");
  return slots;
}

template <class T>
void shard_keys(py::object keys, py::object scale, py::object bias, py::object query_identity, py::object drop_camera,
                py::object gallery_camera, bool own_only, int64_t first, py::object begin, py::object row, py::object value,
                py::object bad, int threads) {
  TensorView k(keys, "keys"), qi(query_identity, "query_identity"), dc(drop_camera, "drop_camera"),
      gc(gallery_camera, "gallery_camera"), v(value, "value"), b(bad, "bad");
  T* x = k.data<T>({-1, -1});
  const int64_t n = k.size(0), size = k.size(1);
  const T* ps = scale.is_none() ? nullptr : TensorView(scale, "scale").data<T>({size});
  const T* pb = scale.is_none() ? nullptr : TensorView(bias, "bias").data<T>({size});
  const RankSlots slots = slots_of(begin, row, n);
  const RankQueries queries{qi.data<int32_t>({n}), dc.data<int32_t>({n}), own_only, false, 0};
  const RankGallery part{size, nullptr, gc.data<int32_t>({size}), nullptr, nullptr, 0};
  T* pv = v.data<T>({slots.begin[n]});
  bool* pbad = b.data<bool>({n});
  py::gil_scoped_release release;
  parallel_for(n, shard_grain(size), threads, [&](int64_t q0, int64_t q1) {
    rank_shard_keys<T>(x, ps, pb, part, first, queries, slots, q0, q1, pv, pbad);
  });
}

template <class T>
void shard_count(py::object keys, int64_t first, py::object begin, py::object row, py::object value, py::object count,
                 int threads) {
  TensorView k(keys, "keys"), v(value, "value"), c(count, "count");
  const T* x = k.data<T>({-1, -1});
  const int64_t n = k.size(0), size = k.size(1);
  const RankSlots slots = slots_of(begin, row, n);
  const T* pv = v.data<T>({slots.begin[n]});
  int64_t* pc = c.data<int64_t>({slots.begin[n]});
  py::gil_scoped_release release;
  parallel_for(n, shard_grain(size), threads,
               [&](int64_t q0, int64_t q1) { rank_shard_count<T>(x, size, first, slots, q0, q1, pv, pc); });
}

template <class T>
void shard_identities(py::object keys, int64_t first, py::object gallery_identity, int64_t identities, py::object value,
                      py::object row, py::object found, int threads) {
  TensorView k(keys, "keys"), gi(gallery_identity, "gallery_identity"), v(value, "value"), r(row, "row"), f(found, "found");
  const T* x = k.data<T>({-1, -1});
  const int64_t n = k.size(0), size = k.size(1);
  const RankGallery part{size, gi.data<int32_t>({size}), nullptr, nullptr, nullptr, identities};
  for (int64_t j = 0; j < size; ++j) {
    const bool known = part.identity[j] >= 0 && part.identity[j] < identities;
    if (!known) throw py::value_error("gallery_identity: expected codes below identities");
  }
  const T* pv = v.data<T>({n});
  const int64_t* pr = r.data<int64_t>({n});
  int32_t* pf = f.data<int32_t>({n, -1});
  const int64_t limit = f.size(1);
  py::gil_scoped_release release;
  parallel_for(n, shard_grain(size), threads,
               [&](int64_t q0, int64_t q1) { rank_shard_identities<T>(x, part, first, q0, q1, pv, pr, limit, pf); });
}

template <class T>
void define_rank_shard(py::module_& m, const std::string& type) {
  m.def(("rank_shard_keys_" + type).c_str(), &shard_keys<T>, py::arg("keys"), py::arg("scale"), py::arg("bias"),
        py::arg("query_identity"), py::arg("drop_camera"), py::arg("gallery_camera"), py::arg("own_only"), py::arg("first"),
        py::arg("begin"), py::arg("row"), py::arg("value"), py::arg("bad"), py::arg("threads"),
        "Products to keys in place, and those of the positives held here.");
  m.def(("rank_shard_count_" + type).c_str(), &shard_count<T>, py::arg("keys"), py::arg("first"), py::arg("begin"),
        py::arg("row"), py::arg("value"), py::arg("count"), py::arg("threads"), "Rows held here ahead of every positive.");
  m.def(("rank_shard_identities_" + type).c_str(), &shard_identities<T>, py::arg("keys"), py::arg("first"),
        py::arg("gallery_identity"), py::arg("identities"), py::arg("value"), py::arg("row"), py::arg("found"),
        py::arg("threads"), "Identities held here with a row ahead of one row per query.");
}

}  // namespace

void bind_rank_shard(py::module_& m) {
  define_rank_shard<float>(m, "float32");
  define_rank_shard<double>(m, "float64");
}

}  // namespace vifast
