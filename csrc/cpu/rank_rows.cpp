#include "../ranking.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "../ranking_inl.h"

namespace vifast {

namespace {

constexpr int64_t kBucketFrom = 128;  // positives from which a binary search beats counting

template <class T>
struct Positives {  // of one query, each ahead of the next
  std::vector<int64_t> index, rank;
  std::vector<T> value;

  // Kept positives of the masked row; dropped ones are NaN there.
  void gather(const T* row, const int64_t* begin, const int64_t* end) {
    index.clear();
    for (const int64_t* r = begin; r < end; ++r) {
      if (row[*r] == row[*r]) index.push_back(*r);
    }
    std::sort(index.begin(), index.end(), [&](int64_t a, int64_t b) { return ahead(row[a], a, row[b], b); });
    value.resize(index.size());
    for (size_t k = 0; k < index.size(); ++k) value[k] = row[index[k]];
    rank.assign(index.size(), 1);
  }
};

}  // namespace

void rank_summary(int64_t* ranks, int64_t n, double* ap, double* inp) {
  std::sort(ranks, ranks + n);
  int64_t* first = std::find_if(ranks, ranks + n, [](int64_t r) { return r > 0; });
  const int64_t kept = ranks + n - first;
  *ap = *inp = std::numeric_limits<double>::quiet_NaN();
  if (kept == 0) return;
  double sum = 0;
  for (int64_t k = 0; k < kept; ++k) sum += static_cast<double>(k + 1) / static_cast<double>(first[k]);
  *ap = sum / static_cast<double>(kept);
  *inp = static_cast<double>(kept) / static_cast<double>(first[kept - 1]);
}

template <class T>
void rank_rows(const T* keys, const T* bias, RankGallery g, RankQueries queries, int64_t q0, int64_t q1, RankResult out) {
  std::vector<T> row(g.size);
  std::vector<int64_t> seen(queries.per_identity ? g.identities : 0, -1), histogram;
  Positives<T> pos;
  for (int64_t q = q0; q < q1; ++q) {
    const int32_t own = queries.identity[q];
    bool bad = false;
    VIFAST_DISPATCH(rank_mask_row, keys + q * g.size, bias, g.size, g.identity, g.camera, queries.drop_camera[q], own, queries.own_only,
                    row.data(), &bad);
    pos.gather(row.data(), g.row + g.begin[own], g.row + g.begin[own + 1]);
    const int64_t p = static_cast<int64_t>(pos.index.size());
    if (bad || p == 0) {
      out.ap[q] = out.inp[q] = std::numeric_limits<double>::quiet_NaN();
      out.first[q] = bad ? -1 : 0;
      continue;
    }
    if (p < kBucketFrom) {
      VIFAST_DISPATCH(rank_count, row.data(), g.size, pos.value.data(), pos.index.data(), p, pos.rank.data());
    } else {
      histogram.resize(p + 1);
      VIFAST_DISPATCH(rank_bucket, row.data(), g.size, pos.value.data(), pos.index.data(), p, histogram.data(), pos.rank.data());
    }
    out.first[q] = pos.rank[0];
    if (queries.per_identity && pos.rank[0] > 1) {
      int64_t others = 0;
      VIFAST_DISPATCH(rank_identities, row.data(), g.size, pos.value[0], pos.index[0], g.identity, q, seen.data(), queries.limit, &others);
      out.first[q] = others + 1;
    }
    rank_summary(pos.rank.data(), p, out.ap + q, out.inp + q);
  }
}

template void rank_rows(const float*, const float*, RankGallery, RankQueries, int64_t, int64_t, RankResult);
template void rank_rows(const double*, const double*, RankGallery, RankQueries, int64_t, int64_t, RankResult);

}  // namespace vifast
