// The arithmetic of csrc over raw pointers, against plain loops in float64; built with sanitizers by run.sh. No Python.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "batch_hard.h"
#include "distance.h"
#include "parallel.h"
#include "ranking.h"
#include "weighted_triplet.h"

using namespace vifast;

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition);        \
      std::exit(1);                                                               \
    }                                                                             \
  } while (0)

namespace {

struct Problem {  // n rows of d features in groups of four, moved far from the origin
  int64_t n, d;
  std::vector<float> x;
  std::vector<int32_t> labels;
  Problem(int64_t n_, int64_t d_) : n(n_), d(d_), x(n_ * d_), labels(n_) {
    std::mt19937 random(static_cast<unsigned>(n * 1000 + d));
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(random) + 100;
    for (int64_t i = 0; i < n; ++i) labels[i] = static_cast<int32_t>(i / 4);
    if (n > 6) std::copy(x.begin(), x.begin() + d, x.begin() + 6 * d);  // a duplicate: exact ties
  }
  double sqdist(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < d; ++k) {
      const double t = static_cast<double>(x[i * d + k]) - x[j * d + k];
      sum += t * t;
    }
    return sum;
  }
};

struct Centered {
  std::vector<float> rows, sq, products;
  explicit Centered(const Problem& p) : rows(p.x.size()), sq(p.n), products(p.n * p.n) {
    std::vector<float> mean(p.d, 0.0f);
    VIFAST_DISPATCH(column_means, p.x.data(), p.n, p.d, p.n, 0, p.d, mean.data());
    VIFAST_DISPATCH(center_rows, p.x.data(), p.d, mean.data(), 0, p.n, rows.data());
    VIFAST_DISPATCH(row_norms, rows.data(), p.d, 0, p.n, sq.data());
    for (int64_t i = 0; i < p.n; ++i) {
      for (int64_t j = 0; j < p.n; ++j) {
        products[i * p.n + j] = std::inner_product(&rows[i * p.d], &rows[(i + 1) * p.d], &rows[j * p.d], 0.0f);
      }
    }
  }
};

struct Side {
  std::vector<float> best, lower;
  std::vector<int32_t> count, index;
  explicit Side(int64_t n) : best(n), lower(n * kHardSlots), count(n), index(n * kHardSlots) {}
  HardSide view() { return {best.data(), count.data(), lower.data(), index.data()}; }
};

void test_distances(const Problem& p) {
  Centered c(p);
  std::vector<float> tile = c.products;
  VIFAST_DISPATCH(products_to_distances, tile.data(), p.n, 0, p.n, p.x.data(), p.x.data(), p.d, c.sq.data(), c.sq.data(), 1e-12f, true);
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      const double want = std::sqrt(std::max(p.sqdist(i, j), 1e-12));
      CHECK(std::fabs(tile[i * p.n + j] - want) <= 2e-5 * want + 1e-7);
    }
  }
}

void test_batch_hard(const Problem& p, bool by_columns) {
  Centered c(p);
  Side pos(p.n), neg(p.n);
  VIFAST_DISPATCH(hard_begin, pos.view(), 0, p.n);
  VIFAST_DISPATCH(hard_begin, neg.view(), 0, p.n);
  const int32_t* l = p.labels.data();
  parallel_for(p.n, 4, 3, [&](int64_t r0, int64_t r1) {
    if (by_columns) {
      VIFAST_DISPATCH(hard_fold_cols, c.products.data(), p.n, p.n, r0, r1, 0, l, l, c.sq.data(), c.sq.data(), hard_slack(p.d),
                      pos.view(), neg.view());
    } else {
      VIFAST_DISPATCH(hard_fold_rows, c.products.data(), p.n, r0, r1, 0, l, l, c.sq.data(), c.sq.data(), hard_slack(p.d), pos.view(),
                      neg.view());
    }
  });
  for (bool positive : {true, false}) {
    std::vector<float> dist(p.n);
    std::vector<int64_t> index(p.n);
    VIFAST_DISPATCH(hard_finish, p.x.data(), p.x.data(), p.n, p.d, 0, p.n, l, l, c.sq.data(), c.sq.data(), nullptr, 0, positive,
                    (HardMetric{false, 1.0f}), positive ? pos.view() : neg.view(), dist.data(), index.data());
    for (int64_t i = 0; i < p.n; ++i) {
      double best = INFINITY;
      for (int64_t j = 0; j < p.n; ++j) {
        if ((l[i] == l[j]) == positive) best = std::min(best, positive ? -p.sqdist(i, j) : p.sqdist(i, j));
      }
      if (best == INFINITY) {
        CHECK(index[i] == -1 && dist[i] == (positive ? -INFINITY : INFINITY));
      } else {
        CHECK((l[i] == l[index[i]]) == positive);
        CHECK(std::fabs(dist[i] - std::fabs(best)) <= 1e-5 * std::fabs(best));
      }
    }
  }
}

void test_weighted_triplet(const Problem& p) {
  Centered c(p);
  std::vector<float> tile = c.products;
  VIFAST_DISPATCH(products_to_distances, tile.data(), p.n, 0, p.n, p.x.data(), p.x.data(), p.d, c.sq.data(), c.sq.data(), 1e-12f, true);
  VIFAST_DISPATCH(mirror_upper, tile.data(), p.n, 0, p.n);
  for (bool by_columns : {false, true}) {
    std::vector<double> s(6 * p.n, 0.0);
    std::fill(s.begin(), s.begin() + p.n, -INFINITY);
    std::fill(s.begin() + 3 * p.n, s.begin() + 4 * p.n, -INFINITY);
    const WrtSide pos{s.data(), s.data() + p.n, s.data() + 2 * p.n}, neg{s.data() + 3 * p.n, s.data() + 4 * p.n, s.data() + 5 * p.n};
    const int32_t* l = p.labels.data();
    if (by_columns) {
      VIFAST_DISPATCH(wrt_fold_cols, tile.data(), p.n, p.n, 0, p.n, l, l, true, pos, neg);
    } else {
      VIFAST_DISPATCH(wrt_fold_rows, tile.data(), p.n, 0, p.n, l, l, true, pos, neg);
    }
    for (int64_t i = 0; i < p.n; ++i) {
      double z = 0, t = 0, top = -INFINITY;
      for (int64_t j = 0; j < p.n; ++j) {
        if (l[i] == l[j]) top = std::max<double>(top, tile[i * p.n + j]);
      }
      for (int64_t j = 0; j < p.n; ++j) {
        if (l[i] != l[j]) continue;
        const double w = std::exp(tile[i * p.n + j] - top);
        z += w;
        t += w * tile[i * p.n + j];
      }
      CHECK(std::fabs(pos.t[i] / pos.z[i] - t / z) <= 1e-5 * (t / z) + 1e-6);
    }
  }
}

void test_parallel_for() {
  for (int64_t n : {0, 1, 7, 1000}) {
    std::vector<int> seen(n, 0);
    parallel_for(n, 3, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++seen[i];
    });
    for (int times : seen) CHECK(times == 1);
  }
}

void test_rank_summary() {
  int64_t ranks[] = {4, 0, 1};  // 0: dropped
  double ap = 0, inp = 0;
  rank_summary(ranks, 3, &ap, &inp);
  CHECK(std::fabs(ap - (1.0 + 2.0 / 4) / 2) < 1e-12);
  CHECK(std::fabs(inp - 2.0 / 4) < 1e-12);
}

}  // namespace

int main() {
  int passed = 0;
  for (Isa level : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!set_isa(level)) continue;
    for (auto [n, d] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {40, 33}, {70, 300}}) {
      const Problem p(n, d);
      test_distances(p);
      test_batch_hard(p, false);
      test_batch_hard(p, true);
      test_weighted_triplet(p);
      passed += 4;
    }
  }
  test_parallel_for();
  test_rank_summary();
  std::printf("%d passed, 0 failed\n", passed + 2);
}
