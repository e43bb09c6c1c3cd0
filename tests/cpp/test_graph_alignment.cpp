#include "graph_alignment.h"

#include <algorithm>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

struct Softmax {
  std::vector<double> m, z, t;
  explicit Softmax(int64_t n) : m(n, -INFINITY), z(n), t(n) {}
  GraphSide at(int64_t first) { return {m.data() + first, z.data() + first, t.data() + first}; }
};

double distance(const Set& s, int64_t i, int64_t j) { return std::sqrt(std::fmax(s.sqdist(i, s, j), 1e-6)); }

std::vector<float> tile_of(const Set& s, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
  std::vector<float> tile;
  for (int64_t r = r0; r < r1; ++r) {
    for (int64_t c = c0; c < c1; ++c) tile.push_back(static_cast<float>(distance(s, r, c)));
  }
  return tile;
}

TEST(graph_softmaxes_of_tiles_agree_with_whole_ones) {
  each_isa([] {
    const Set a(150, 9, 6, 4), b(150, 5, 6, 8);
    for (bool skip : {false, true}) {
      Softmax p(a.n), q(a.n);
      for (int64_t i = 0; i < a.n; i += 64) {
        for (int64_t j = i; j < a.n; j += 64) {
          const int64_t i1 = std::min(i + 64, a.n), j1 = std::min(j + 64, a.n);
          const std::vector<float> u = tile_of(a, i, i1, j, j1), v = tile_of(b, i, i1, j, j1);
          parallel_for(i1 - i, 1, 3, [&](int64_t r0, int64_t r1) {
            VIFAST_DISPATCH(graph_fold_rows, u.data(), v.data(), j1 - j, r0, r1, skip && i == j, 1.0, p.at(i), q.at(i));
          });
          if (i == j) continue;
          parallel_for(j1 - j, 1, 3, [&](int64_t c0, int64_t c1) {
            VIFAST_DISPATCH(graph_fold_cols, u.data(), v.data(), i1 - i, j1 - j, c0, c1, 1.0, p.at(j), q.at(j));
          });
        }
      }
      for (int64_t i = 0; i < a.n; ++i) {
        double z = 0, t = 0;
        for (int64_t j = 0; j < a.n; ++j) {
          if (skip && i == j) continue;
          z += std::exp(distance(a, i, j));
          t += std::exp(distance(a, i, j)) * (distance(b, i, j) - distance(a, i, j));
        }
        CHECK(near(p.m[i] + std::log(p.z[i]), std::log(z)));
        CHECK(near(p.t[i] / p.z[i], t / z));
        CHECK(q.z[i] >= 1);
      }
    }
  });
}

TEST(graph_weights_of_equal_graphs_are_zero) {
  each_isa([] {
    const Set a(40, 9, 6, 4);
    Softmax p(a.n), q(a.n);
    std::vector<float> u = tile_of(a, 0, a.n, 0, a.n), v = u;
    VIFAST_DISPATCH(graph_fold_rows, u.data(), v.data(), a.n, 0, a.n, true, 1.0, p.at(0), q.at(0));
    std::vector<double> inv(a.n), mean(a.n), grad(a.n, 1.0), u_sum(a.n), v_sum(a.n);
    for (int64_t i = 0; i < a.n; ++i) inv[i] = 1 / p.z[i];
    const GraphSaved saved{grad.data(), p.m.data(), inv.data(), mean.data(), q.m.data(), inv.data(), mean.data()};
    const GraphKind kind{true, 1.0, 1e-6f};
    VIFAST_DISPATCH(graph_backward_rows, u.data(), v.data(), a.n, 0, a.n, true, kind, true, saved, saved, u_sum.data(), v_sum.data());
    for (float weight : u) CHECK(near(weight, 0.0));
    for (double sum : v_sum) CHECK(near(sum, 0.0));
  });
}

}  // namespace
}  // namespace vifast
