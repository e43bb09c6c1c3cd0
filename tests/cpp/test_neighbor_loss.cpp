#include "neighbor_loss.h"

#include <algorithm>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

struct Neighbors {
  std::vector<double> least, z, near, count;
  explicit Neighbors(int64_t n) : least(n, INFINITY), z(n), near(n), count(n) {}
  NeighborState at(int64_t first) { return {least.data() + first, z.data() + first, near.data() + first, count.data() + first}; }
};

float distance(const Set& s, int64_t i, int64_t j) {
  return i == j ? INFINITY : static_cast<float>(std::sqrt(std::fmax(s.sqdist(i, s, j), 1e-12)));
}

TEST(neighbors_of_tiles_agree_with_all_at_once) {
  each_isa([] {
    const Set s(150, 9, 6, 4);
    const float factor = 3;
    Neighbors state(s.n);
    for (int64_t i = 0; i < s.n; i += 64) {
      for (int64_t j = i; j < s.n; j += 64) {
        const int64_t i1 = std::min(i + 64, s.n), j1 = std::min(j + 64, s.n);
        std::vector<float> tile;
        for (int64_t r = i; r < i1; ++r) {
          for (int64_t c = j; c < j1; ++c) tile.push_back(distance(s, r, c));
        }
        const int32_t *rows = s.labels.data() + i, *cols = s.labels.data() + j;
        parallel_for(i1 - i, 1, 3, [&](int64_t r0, int64_t r1) {
          VIFAST_DISPATCH(neighbor_fold_rows, tile.data(), j1 - j, r0, r1, rows, cols, factor, state.at(i));
        });
        if (i == j) continue;
        parallel_for(j1 - j, 1, 3, [&](int64_t c0, int64_t c1) {
          VIFAST_DISPATCH(neighbor_fold_cols, tile.data(), i1 - i, j1 - j, c0, c1, rows, cols, factor, state.at(j));
        });
      }
    }
    for (int64_t i = 0; i < s.n; ++i) {
      double z = 0, sum = 0, count = 0;
      for (int64_t j = 0; j < s.n; ++j) {
        if (i == j) continue;
        const double d = distance(s, i, j);
        z += std::exp(factor * (state.least[i] - d));
        sum += s.labels[i] == s.labels[j] ? d : 0;
        count += s.labels[i] == s.labels[j];
      }
      CHECK(near(state.z[i], z));
      CHECK(near(state.near[i], sum));
      CHECK(state.count[i] == count);
    }
  });
}

TEST(weights_of_two_neighbors_by_hand) {
  each_isa([] {
    // Rows 0 and 1 of one identity at distance 2; a third column does not exist.
    for (bool both : {false, true}) {
      std::vector<float> dist = {INFINITY, 2.0f, NAN, 2.0f, INFINITY, NAN};
      const std::vector<int32_t> labels = {0, 0, 0};
      const std::vector<float> least(3, 1.0f), weight = {0.25f, 0.5f, 1.0f}, share = {1.0f, 2.0f, 1.0f};
      const NeighborSaved saved{least.data(), weight.data(), share.data()};
      std::vector<double> sum(2, 0.0);
      VIFAST_DISPATCH(neighbor_backward_rows, dist.data(), 3, 0, 2, labels.data(), labels.data(), NeighborKind{true, 1e-12f, 3.0f}, both, saved,
                      saved, sum.data());
      const double c0 = 1 - 0.25 * std::exp(-3.0), c1 = 2 - 0.5 * std::exp(-3.0);
      CHECK(near(dist[1], -(c0 + (both ? c1 : 0)) / 2));
      CHECK(near(dist[3], -(c1 + (both ? c0 : 0)) / 2));
      CHECK(dist[0] == 0 && dist[2] == 0 && dist[4] == 0 && dist[5] == 0);
      CHECK(near(sum[0], dist[1]) && near(sum[1], dist[3]));
    }
  });
}

}  // namespace
}  // namespace vifast
