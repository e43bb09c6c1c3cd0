#include "center_loss.h"

#include "check.h"

namespace vifast {
namespace {

TEST(rows_and_the_centers_of_their_classes) {
  each_isa([] {
    const Set s(6, 300, 2, 5), centers(3, 300, 2, 6);
    const std::vector<int64_t> codes{2, 0, 2, -1, 3, 2}, rows{0, 2, 5};
    std::vector<double> square(s.n);
    std::vector<float> to_x(s.n * s.d, 7.0f), to_center(s.d);
    VIFAST_DISPATCH(center_distances, s.x.data(), codes.data(), centers.x.data(), 3, s.d, 0, s.n, square.data());
    CHECK(near(square[1], s.sqdist(1, centers, 0)) && near(square[5], s.sqdist(5, centers, 2)));
    CHECK(square[3] == 0 && square[4] == 0);
    for (int64_t c : {int64_t{0}, int64_t{7}}) {
      VIFAST_DISPATCH(center_pull, s.x.data(), s.d, centers.row(2), rows.data(), 3, 0.5f, c, c == 0 ? 7 : s.d, to_x.data(), to_center.data());
    }
    VIFAST_DISPATCH(center_pull, s.x.data(), s.d, centers.row(2), rows.data(), 3, 0.5f, 0, s.d, nullptr, nullptr);
    for (int64_t k = 0; k < s.d; ++k) {
      const double own = centers.row(2)[k];
      CHECK(near(to_x[2 * s.d + k], 0.5 * (s.row(2)[k] - own)));
      CHECK(to_x[s.d + k] == 7.0f);
      CHECK(near(to_center[k], 0.5 * (3 * own - s.row(0)[k] - s.row(2)[k] - s.row(5)[k])));
    }
  });
}

}  // namespace
}  // namespace vifast
