#include "distance.h"
#include "weighted_triplet.h"

#include <algorithm>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

struct Side {
  std::vector<double> m, z, t;
  Side(int64_t n, double start) : m(n, start), z(n), t(n) {}
  WrtSide at(int64_t first) { return {m.data() + first, z.data() + first, t.data() + first}; }
  double mean(int64_t i) const { return t[i] / z[i]; }
};

std::vector<float> distances(const Set& s, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  std::vector<float> tile;
  for (int64_t r = r0; r < r1; ++r) {
    for (int64_t c = c0; c < c1; ++c) tile.push_back(static_cast<float>(std::sqrt(std::fmax(s.sqdist(r, s, c), 1e-12))));
  }
  return tile;
}

TEST(online_softmax_agrees_with_a_whole_one) {
  each_isa([] {
    const Set s(150, 9, 6, 4);
    for (bool stable : {false, true}) {
      Side pos(s.n, -INFINITY), neg(s.n, stable ? -INFINITY : 0.0);
      for (int64_t i = 0; i < s.n; i += 64) {
        for (int64_t j = i; j < s.n; j += 64) {
          const int64_t i1 = std::min(i + 64, s.n), j1 = std::min(j + 64, s.n);
          const std::vector<float> tile = distances(s, i, i1, j, j1);
          const int32_t *rows = s.labels.data() + i, *cols = s.labels.data() + j;
          parallel_for(i1 - i, 1, 3, [&](int64_t r0, int64_t r1) {
            VIFAST_DISPATCH(wrt_fold_rows, tile.data(), j1 - j, r0, r1, rows, cols, stable, pos.at(i), neg.at(i));
          });
          if (i == j) continue;
          parallel_for(j1 - j, 1, 3, [&](int64_t c0, int64_t c1) {
            VIFAST_DISPATCH(wrt_fold_cols, tile.data(), i1 - i, j1 - j, c0, c1, rows, cols, stable, pos.at(j), neg.at(j));
          });
        }
      }
      for (int64_t i = 0; i < s.n; ++i) {
        double zp = 0, tp = 0, zn = 0, tn = 0;
        for (int64_t j = 0; j < s.n; ++j) {
          const double d = std::sqrt(std::fmax(s.sqdist(i, s, j), 1e-12));
          const bool same = s.labels[i] == s.labels[j];
          (same ? zp : zn) += std::exp(same ? d : -d);
          (same ? tp : tn) += d * std::exp(same ? d : -d);
        }
        CHECK(near(pos.mean(i), tp / zp));
        CHECK(near(neg.mean(i), tn / zn));
        if (!stable) CHECK(near(neg.z[i], zn, 1e-5, 0));
      }
    }
  });
}

TEST(column_sums_add_to_what_is_there) {
  each_isa([] {
    const int64_t rows = 5, cols = 131;
    std::vector<float> tile(rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i) tile[i] = static_cast<float>(i % 7) - 3;
    std::vector<double> sum(cols, 10.0);
    parallel_for(cols, 1, 3, [&](int64_t c0, int64_t c1) { VIFAST_DISPATCH(add_column_sums, tile.data(), rows, cols, c0, c1, sum.data()); });
    for (int64_t c = 0; c < cols; ++c) {
      double wanted = 10;
      for (int64_t r = 0; r < rows; ++r) wanted += tile[r * cols + c];
      CHECK(sum[c] == wanted);
    }
  });
}

TEST(weights_of_two_rows_by_hand) {
  each_isa([] {
    // Rows 0 and 1 of different identities at distance 2, each its own only positive at the floor.
    std::vector<float> dist = {1e-6f, 2.0f, 2.0f, 1e-6f};
    const std::vector<int32_t> labels = {0, 1};
    std::vector<float> slope = {0.5f, 0.25f}, top(2, 1e-6f), inv_pos(2, 1.0f), p(2, 1e-6f), least(2, 2.0f), inv_neg(2, 1.0f), q(2, 2.0f);
    const WrtSaved saved{slope.data(), top.data(), inv_pos.data(), p.data(), least.data(), inv_neg.data(), q.data()};
    std::vector<double> sum(2, 0.0);
    VIFAST_DISPATCH(wrt_backward_rows, dist.data(), 2, 0, 2, labels.data(), labels.data(), true, saved, saved, sum.data());
    const double s = (0.5 + 0.25) / 2.0;  // -slope * e^0 * (1 - d + q), from both anchors, over the distance
    CHECK(near(std::fabs(dist[1]), s) && near(dist[2], dist[1]));
    CHECK(dist[0] == 0 && dist[3] == 0);
    CHECK(near(std::fabs(sum[0]), s) && near(std::fabs(sum[1]), s));
  });
}

}  // namespace
}  // namespace vifast
