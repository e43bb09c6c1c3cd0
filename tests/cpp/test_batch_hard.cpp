#include "batch_hard.h"

#include <algorithm>
#include <limits>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

struct State {
  std::vector<float> best, lower;
  std::vector<int32_t> count, index;
  explicit State(int64_t n) : best(n), lower(n * kHardSlots), count(n), index(n * kHardSlots) {}
  HardSide side(int64_t first = 0) {
    return {best.data() + first, count.data() + first, lower.data() + first * kHardSlots, index.data() + first * kHardSlots};
  }
};

struct Mined {
  std::vector<float> d_pos, d_neg;
  std::vector<int64_t> i_pos, i_neg;
  explicit Mined(int64_t n) : d_pos(n), d_neg(n), i_pos(n), i_neg(n) {}
};

// The set against itself in tiles of `step`: the upper triangle, off-diagonal tiles folded both ways.
Mined mine(const Set& s, int64_t step, int threads) {
  State pos(s.n), neg(s.n);
  VIFAST_DISPATCH(hard_begin, pos.side(), 0, s.n);
  VIFAST_DISPATCH(hard_begin, neg.side(), 0, s.n);
  const float slack = hard_slack(s.d);
  for (int64_t i = 0; i < s.n; i += step) {
    for (int64_t j = i; j < s.n; j += step) {
      const int64_t i1 = std::min(i + step, s.n), j1 = std::min(j + step, s.n);
      const std::vector<float> tile = products(s, i, i1, s, j, j1);
      parallel_for(i1 - i, 1, threads, [&](int64_t r0, int64_t r1) {
        VIFAST_DISPATCH(hard_fold_rows, tile.data(), j1 - j, r0, r1, j, s.labels.data() + i, s.labels.data() + j, s.sq.data() + i,
                        s.sq.data() + j, slack, pos.side(i), neg.side(i));
      });
      if (i == j) continue;
      parallel_for(j1 - j, 1, threads, [&](int64_t c0, int64_t c1) {
        VIFAST_DISPATCH(hard_fold_cols, tile.data(), i1 - i, j1 - j, c0, c1, i, s.labels.data() + i, s.labels.data() + j,
                        s.sq.data() + i, s.sq.data() + j, slack, pos.side(j), neg.side(j));
      });
    }
  }
  std::vector<int64_t> bad;
  for (int64_t i = 0; i < s.n; ++i) {
    if (!std::isfinite(s.sq[i])) bad.push_back(i);
  }
  Mined out(s.n);
  const int64_t n_bad = static_cast<int64_t>(bad.size());
  parallel_for(s.n, 1, threads, [&](int64_t r0, int64_t r1) {
    const HardMetric euclidean{true, 1.0f};
    VIFAST_DISPATCH(hard_finish, s.x.data(), s.x.data(), s.n, s.d, r0, r1, s.labels.data(), s.labels.data(), s.sq.data(), s.sq.data(),
                    bad.data(), n_bad, true, euclidean, pos.side(), out.d_pos.data(), out.i_pos.data());
    VIFAST_DISPATCH(hard_finish, s.x.data(), s.x.data(), s.n, s.d, r0, r1, s.labels.data(), s.labels.data(), s.sq.data(), s.sq.data(),
                    bad.data(), n_bad, false, euclidean, neg.side(), out.d_neg.data(), out.i_neg.data());
  });
  return out;
}

void check_mined(const Set& s, const Mined& mined) {
  for (int64_t i = 0; i < s.n; ++i) {
    double far = -1, close = std::numeric_limits<double>::infinity();
    int64_t i_pos = -1, i_neg = -1;
    for (int64_t j = 0; j < s.n; ++j) {
      const double sq = s.sqdist(i, s, j);
      if (s.labels[i] == s.labels[j] && sq > far) far = sq, i_pos = j;
      if (s.labels[i] != s.labels[j] && sq < close) close = sq, i_neg = j;
    }
    CHECK(mined.i_pos[i] == i_pos);
    CHECK(mined.i_neg[i] == i_neg);
    CHECK(near(mined.d_pos[i], std::sqrt(std::fmax(far, 1e-12)), 1e-6, 0));
    CHECK(i_neg < 0 ? mined.d_neg[i] == close : near(mined.d_neg[i], std::sqrt(std::fmax(close, 1e-12)), 1e-6, 0));
  }
}

TEST(mining_agrees_with_all_differences) {
  each_isa([] {
    for (int64_t n : {1, 2, 63, 65, 130}) {
      for (int64_t d : {1, 17, 64}) {
        const Set s(n, d, 7, static_cast<unsigned>(n + d));
        check_mined(s, mine(s, 64, 3));
      }
    }
  });
}

TEST(more_equal_rows_than_slots) {
  each_isa([] {
    Set s(120, 12, 5, 9);
    for (int64_t i = 0; i < s.n; i += 2) {
      for (int64_t k = 0; k < s.d; ++k) s.x[i * s.d + k] = s.x[k];
    }
    s.renorm();
    check_mined(s, mine(s, 32, 2));
    for (float& x : s.x) x = 0.25f;
    s.renorm();
    check_mined(s, mine(s, 32, 2));
  });
}

TEST(one_identity_has_no_negatives) {
  const Set s(20, 6, 1, 3);
  const Mined mined = mine(s, 8, 2);
  check_mined(s, mined);
  CHECK(mined.i_neg[0] == -1);
}

TEST(a_bad_row_is_reported_and_nothing_else_breaks) {
  each_isa([] {
    Set s(40, 6, 4, 5);
    s.x[7 * s.d + 2] = NAN;
    s.renorm();
    const Mined mined = mine(s, 16, 2);
    for (int64_t i = 0; i < s.n; ++i) {
      const bool own = s.labels[i] == s.labels[7];
      CHECK(std::isnan(own ? mined.d_pos[i] : mined.d_neg[i]));
      if (i != 7) CHECK((own ? mined.i_pos[i] : mined.i_neg[i]) == 7);
    }
  });
}

TEST(slack_bounds_the_error_of_a_float_product) {
  for (int64_t d : {1, 100, 2048}) {
    CHECK(hard_slack(d) >= d * 5.9e-8);
    CHECK(hard_slack(d) < 1e-3);
  }
}

TEST(differences_are_summed_in_order) {
  each_isa([] {
    const Set a(3, 35, 2, 1), b(4, 35, 2, 2);
    const std::vector<int64_t> begin = {0, 2, 2, 3}, partner = {1, 3, 0};
    const std::vector<float> weight = {0.5f, -2.0f, 3.0f};
    std::vector<float> out(3 * 35, NAN);
    VIFAST_DISPATCH(weighted_differences, a.x.data(), b.x.data(), 35, 0, 3, begin.data(), partner.data(), weight.data(), out.data());
    for (int64_t k = 0; k < 35; ++k) {
      CHECK(near(out[k], 0.5 * (a.row(0)[k] - b.row(1)[k]) - 2.0 * (a.row(0)[k] - b.row(3)[k])));
      CHECK(out[35 + k] == 0);
      CHECK(near(out[70 + k], 3.0 * (a.row(2)[k] - b.row(0)[k])));
    }
  });
}

}  // namespace
}  // namespace vifast
