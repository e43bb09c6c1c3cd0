// What every way of ranking begins with: a query's row without the columns that its protocol drops, and its positives there.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "../ranking.h"
#include "../ranking_inl.h"

namespace vifast {

template <class T>
struct Positives {  // kept positives of one query
  std::vector<int64_t> index, rank;
  std::vector<T> value;

  // Keys of query q into row [size], NaN where dropped, and its positives by rising index; false where a key is NaN.
  bool gather(RankKeys<T> keys, RankGallery g, RankQueries queries, int64_t q, T* row) {
    const int32_t own = queries.identity[q], drop = queries.drop_camera[q];
    bool bad = false;
    VIFAST_DISPATCH(rank_mask_row, keys.x + q * g.size, keys.scale, keys.bias, g.size, g.camera, queries.own_only ? -1 : drop,
                    row, &bad);
    index.clear();
    for (const int64_t* r = g.row + g.begin[own]; r < g.row + g.begin[own + 1]; ++r) {
      if (dropped(g.camera[*r], own, drop, own, queries.own_only)) {
        row[*r] = std::numeric_limits<T>::quiet_NaN();
      } else if (!bad) {
        index.push_back(*r);
      }
    }
    take_values(row);
    rank.assign(index.size(), 1);
    return !bad;
  }

  void sort(const T* row) {
    std::sort(index.begin(), index.end(), [&](int64_t a, int64_t b) { return ahead(row[a], a, row[b], b); });
    take_values(row);
  }

  int64_t size() const { return static_cast<int64_t>(index.size()); }
  size_t nearest() const { return std::min_element(rank.begin(), rank.end()) - rank.begin(); }

 private:
  void take_values(const T* row) {
    value.resize(index.size());
    for (size_t k = 0; k < index.size(); ++k) value[k] = row[index[k]];
  }
};

}  // namespace vifast
