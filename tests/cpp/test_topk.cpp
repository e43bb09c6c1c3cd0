#include "topk.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

double key_of(Metric metric, const Set& a, int64_t i, const Set& b, int64_t j) {
  if (metric == Metric::dot) return -a.dot(i, b, j);
  if (metric == Metric::sqeuclidean) return a.sqdist(i, b, j);
  return 1 - a.dot(i, b, j) / std::sqrt(a.dot(i, a, i) * b.dot(j, b, j));
}

float widened(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct Multiplied {  // a set as products take it, and what is known of it
  Set set;
  std::vector<double> norm, lost;
  Multiplied(const Set& rows, bool half) : set(rows), norm(rows.n), lost(rows.n) {
    if (!half) {
      VIFAST_DISPATCH(topk_norms, rows.x.data(), rows.d, 0, rows.n, norm.data());
      return;
    }
    std::vector<uint16_t> bits(rows.n * rows.d);
    VIFAST_DISPATCH(topk_round, rows.x.data(), rows.d, 0, rows.n, bits.data(), norm.data(), lost.data());
    for (size_t i = 0; i < bits.size(); ++i) set.x[i] = widened(bits[i]);
  }
};

void check_search(Metric metric, const Set& queries, const Set& gallery, int64_t k, int64_t step, bool half) {
  const int64_t n = queries.n, d = gallery.d, room = k + 6;
  const Rows rows{gallery.x.data(), RowType::float32, d};
  // The cosine multiplies unit rows; the others the rows themselves.
  Set a = queries, b = gallery;
  if (metric == Metric::cosine) {
    for (Set* s : {&a, &b}) {
      for (int64_t i = 0; i < s->n; ++i) {
        const float norm = static_cast<float>(std::sqrt(s->dot(i, *s, i)));
        for (int64_t c = 0; c < d; ++c) s->x[i * d + c] /= norm;
      }
    }
  }
  const Multiplied left(a, half), right(b, half);
  std::vector<Candidate> candidates(n * room);
  std::vector<int64_t> count(n), index(n * k);
  std::vector<double> worst(n, INFINITY);
  std::vector<double> key(n * k);
  const TopkState state{k, room, candidates.data(), count.data(), worst.data()};
  for (int64_t j = 0; j < gallery.n; j += step) {
    const int64_t j1 = std::min(j + step, gallery.n);
    const TopkColumns columns(metric, {right.norm.data() + j, half ? right.lost.data() + j : nullptr}, j, j1 - j, nullptr);
    const std::vector<float> tile = products(left.set, 0, n, right.set, j, j1);
    std::vector<uint16_t> rounded(tile.size());
    std::vector<double> unused(2);
    if (half) VIFAST_DISPATCH(topk_round, tile.data(), static_cast<int64_t>(tile.size()), 0, 1, rounded.data(), &unused[0], &unused[1]);
    const TopkTile given{half ? static_cast<const void*>(rounded.data()) : tile.data(), half};
    parallel_for(n, 1, 3, [&](int64_t q0, int64_t q1) {
      topk_fold(given, columns, metric, queries.x.data(), {left.norm.data(), half ? left.lost.data() : nullptr}, rows, q0, q1, state);
    });
  }
  topk_finish(metric, queries.x.data(), rows, 0, n, state, key.data(), index.data());
  for (int64_t i = 0; i < n; ++i) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t j = 0; j < gallery.n; ++j) all.emplace_back(key_of(metric, queries, i, gallery, j), j);
    std::sort(all.begin(), all.end());
    for (int64_t r = 0; r < k; ++r) {
      CHECK(near(key[i * k + r], all[r].first));
      CHECK(index[i * k + r] == all[r].second || near(all[r].first, key_of(metric, queries, i, gallery, index[i * k + r]), 1e-12, 1e-12));
    }
  }
}

TEST(search_agrees_with_a_sort) {
  each_isa([] {
    for (Metric metric : {Metric::cosine, Metric::dot, Metric::sqeuclidean}) {
      for (int64_t d : {3, 40}) {
        for (bool half : {false, true}) {
          check_search(metric, Set(7, d, 3, 1), Set(150, d, 3, 2), 10, 64, half);
          check_search(metric, Set(2, d, 3, 3), Set(5, d, 3, 4), 5, 64, half);
        }
      }
    }
  });
}

TEST(more_equal_rows_than_room) {
  each_isa([] {
    Set gallery(140, 8, 3, 5);
    for (int64_t j = 0; j < gallery.n; j += 2) {
      for (int64_t c = 0; c < gallery.d; ++c) gallery.x[j * gallery.d + c] = gallery.x[c];
    }
    gallery.renorm();
    for (bool half : {false, true}) check_search(Metric::sqeuclidean, Set(4, 8, 3, 6), gallery, 9, 32, half);
  });
}

}  // namespace
}  // namespace vifast
