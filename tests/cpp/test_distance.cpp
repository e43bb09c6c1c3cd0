#include "distance.h"

#include <limits>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

TEST(means_skip_what_is_not_finite) {
  each_isa([] {
    const float inf = std::numeric_limits<float>::infinity();
    const std::vector<float> x = {1, 2, 3, NAN, 4, inf};
    std::vector<float> mean(2, 0.0f);
    VIFAST_DISPATCH(column_means, x.data(), 3, 2, 3, 0, 2, mean.data());
    CHECK(near(mean[0], 8.0 / 3) && near(mean[1], 2.0 / 3));
  });
}

TEST(centred_rows) {
  each_isa([] {
    for (int64_t d : {1, 5, 64, 300}) {
      Set s(9, d, 3, 1);
      std::vector<float> mean(d, 0.5f), centered(9 * d);
      parallel_for(9, 1, 3, [&](int64_t r0, int64_t r1) {
        VIFAST_DISPATCH(center_rows, s.x.data(), d, mean.data(), r0, r1, centered.data());
      });
      for (int64_t i = 0; i < 9; ++i) {
        for (int64_t k = 0; k < d; ++k) CHECK(centered[i * d + k] == s.row(i)[k] - 0.5f);
      }
    }
  });
}

TEST(distances_near_and_far_rooted_and_clamped) {
  each_isa([] {
    for (bool root : {false, true}) {
      Set a(6, 70, 2, 2), b(37, 70, 2, 3);
      for (int64_t k = 0; k < 70; ++k) b.x[4 * 70 + k] = a.x[2 * 70 + k] * 1.0001f;  // a product loses this difference
      for (int64_t k = 0; k < 70; ++k) b.x[5 * 70 + k] = a.x[3 * 70 + k];
      b.renorm();
      std::vector<float> tile = products(a, 0, 6, b, 0, 37);
      parallel_for(6, 1, 2, [&](int64_t r0, int64_t r1) {
        VIFAST_DISPATCH(products_to_distances, tile.data(), 37, 37, r0, r1, a.x.data(), b.x.data(), 70, a.sq.data(), b.sq.data(),
                        1e-12f, root);
      });
      for (int64_t i = 0; i < 6; ++i) {
        for (int64_t j = 0; j < 37; ++j) {
          const double sq = std::fmax(a.sqdist(i, b, j), 1e-12);
          CHECK(near(tile[i * 37 + j], root ? std::sqrt(sq) : sq, 1e-5, 0));
        }
      }
    }
  });
}

TEST(a_nan_stays) {
  each_isa([] {
    Set a(2, 8, 1, 4);
    a.x[3] = NAN;
    a.renorm();
    std::vector<float> tile = products(a, 0, 2, a, 0, 2);
    VIFAST_DISPATCH(products_to_distances, tile.data(), 2, 2, 0, 2, a.x.data(), a.x.data(), 8, a.sq.data(), a.sq.data(), 1e-12f, true);
    CHECK(std::isnan(tile[0]) && std::isnan(tile[1]) && std::isnan(tile[2]) && !std::isnan(tile[3]));
  });
}

}  // namespace
}  // namespace vifast
