#include "topk.h"

#include <algorithm>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

double key_of(Metric metric, const Set& a, int64_t i, const Set& b, int64_t j) {
  if (metric == Metric::dot) return -a.dot(i, b, j);
  if (metric == Metric::sqeuclidean) return a.sqdist(i, b, j);
  return 1 - a.dot(i, b, j) / std::sqrt(a.dot(i, a, i) * b.dot(j, b, j));
}

void check_search(Metric metric, const Set& queries, const Set& gallery, int64_t k, int64_t step) {
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
  std::vector<double> a_norm(a.n), b_norm(b.n);
  VIFAST_DISPATCH(topk_norms, a.x.data(), d, 0, a.n, a_norm.data());
  VIFAST_DISPATCH(topk_norms, b.x.data(), d, 0, b.n, b_norm.data());
  std::vector<Candidate> candidates(n * room);
  std::vector<int64_t> count(n), index(n * k);
  std::vector<double> worst(n, INFINITY);
  std::vector<float> dist(n * k);
  const TopkState state{k, room, candidates.data(), count.data(), worst.data()};
  for (int64_t j = 0; j < gallery.n; j += step) {
    const int64_t j1 = std::min(j + step, gallery.n);
    const TopkColumns columns(metric, b_norm.data() + j, j, j1 - j, nullptr);
    const std::vector<float> tile = products(a, 0, n, b, j, j1);
    parallel_for(n, 1, 3, [&](int64_t q0, int64_t q1) {
      topk_fold(tile.data(), columns, metric, queries.x.data(), a_norm.data(), rows, q0, q1, state);
    });
  }
  topk_finish<float>(metric, false, queries.x.data(), rows, 0, n, state, dist.data(), index.data());
  for (int64_t i = 0; i < n; ++i) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t j = 0; j < gallery.n; ++j) all.emplace_back(key_of(metric, queries, i, gallery, j), j);
    std::sort(all.begin(), all.end());
    for (int64_t r = 0; r < k; ++r) {
      const double wanted = metric == Metric::dot ? -all[r].first : all[r].first;
      CHECK(near(dist[i * k + r], wanted));
      CHECK(index[i * k + r] == all[r].second || near(all[r].first, key_of(metric, queries, i, gallery, index[i * k + r]), 1e-12, 1e-12));
    }
  }
}

TEST(search_agrees_with_a_sort) {
  each_isa([] {
    for (Metric metric : {Metric::cosine, Metric::dot, Metric::sqeuclidean}) {
      for (int64_t d : {3, 40}) {
        check_search(metric, Set(7, d, 3, 1), Set(150, d, 3, 2), 10, 64);
        check_search(metric, Set(2, d, 3, 3), Set(5, d, 3, 4), 5, 64);
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
    check_search(Metric::sqeuclidean, Set(4, 8, 3, 6), gallery, 9, 32);
  });
}

}  // namespace
}  // namespace vifast
