#include <algorithm>
#include <limits>
#include <vector>

#include "../ranking.h"
#include "../ranking_inl.h"

namespace vifast {

template <class T>
void rank_shard_keys(T* x, const T* scale, const T* bias, RankGallery part, int64_t first, RankQueries queries, RankSlots slots,
                     int64_t q0, int64_t q1, T* value, bool* bad) {
  for (int64_t q = q0; q < q1; ++q) {
    T* row = x + q * part.size;
    const int32_t own = queries.identity[q], drop = queries.drop_camera[q];
    VIFAST_DISPATCH(rank_mask_row, row, scale, bias, part.size, part.camera, queries.own_only ? -1 : drop, row, bad + q);
    for (int64_t s = slots.begin[q]; s < slots.begin[q + 1]; ++s) {
      const int64_t at = slots.row[s] - first;
      value[s] = 0;
      if (at < 0 || at >= part.size) continue;
      if (dropped(part.camera[at], own, drop, own, queries.own_only)) row[at] = std::numeric_limits<T>::quiet_NaN();
      value[s] = row[at];
    }
  }
}

template <class T>
void rank_shard_count(const T* x, int64_t size, int64_t first, RankSlots slots, int64_t q0, int64_t q1, const T* value,
                      int64_t* count) {
  std::vector<int64_t> kept, index, sums, histogram;  // kept: slots of the positives that are not dropped
  std::vector<T> values;
  for (int64_t q = q0; q < q1; ++q) {
    const T* row = x + q * size;
    kept.clear();
    for (int64_t s = slots.begin[q]; s < slots.begin[q + 1]; ++s) {
      count[s] = 0;
      if (value[s] == value[s]) kept.push_back(s);
    }
    const int64_t p = static_cast<int64_t>(kept.size());
    if (p == 0) continue;
    const bool search = p >= rank_bucket_from();
    auto before = [&](int64_t a, int64_t b) { return ahead(value[a], slots.row[a], value[b], slots.row[b]); };
    if (search) std::sort(kept.begin(), kept.end(), before);
    index.resize(p);
    values.resize(p);
    sums.assign(p, 0);
    for (int64_t k = 0; k < p; ++k) {
      values[k] = value[kept[k]];
      index[k] = slots.row[kept[k]] - first;  // below 0 or beyond the last where another process holds the row
    }
    if (search) {
      histogram.resize(p + 1);
      for (int64_t k = 0; k < p; ++k) sums[k] = index[k] < 0 || index[k] >= size;  // a row that is here is not counted
      VIFAST_DISPATCH(rank_bucket, row, size, values.data(), index.data(), p, histogram.data(), sums.data());
    } else {
      for (int64_t& i : index) i = std::clamp<int64_t>(i, 0, size);
      VIFAST_DISPATCH(rank_count, row, size, values.data(), index.data(), p, sums.data());
    }
    for (int64_t k = 0; k < p; ++k) count[kept[k]] = sums[k];
  }
}

template <class T>
void rank_shard_identities(const T* x, RankGallery part, int64_t first, int64_t q0, int64_t q1, const T* value,
                           const int64_t* row, int64_t limit, int32_t* found) {
  std::vector<int64_t> seen(part.identities, -1);
  for (int64_t q = q0; q < q1; ++q) {
    std::fill(found + q * limit, found + (q + 1) * limit, -1);
    if (row[q] < 0) continue;
    int64_t others = 0;
    VIFAST_DISPATCH(rank_identities, x + q * part.size, part.size, value[q], row[q] - first, part.identity, q, seen.data(),
                    limit, &others, found + q * limit);
  }
}

#define VIFAST_RANK_SHARD(T)                                                                                           \
  template void rank_shard_keys(T*, const T*, const T*, RankGallery, int64_t, RankQueries, RankSlots, int64_t, int64_t, \
                                T*, bool*);                                                                            \
  template void rank_shard_count(const T*, int64_t, int64_t, RankSlots, int64_t, int64_t, const T*, int64_t*);         \
  template void rank_shard_identities(const T*, RankGallery, int64_t, int64_t, int64_t, const T*, const int64_t*,      \
                                      int64_t, int32_t*);
VIFAST_RANK_SHARD(float)
VIFAST_RANK_SHARD(double)
#undef VIFAST_RANK_SHARD

}  // namespace vifast
