#include "class_centers.h"

#include "check.h"

namespace vifast {
namespace {

TEST(means_of_chosen_rows) {
  each_isa([] {
    const Set s(9, 300, 3, 5);
    const std::vector<int64_t> rows{1, 4, 8}, others{0, 2};
    std::vector<float> mean(s.d), diff(s.d), out(s.n * s.d, 0.0f);
    VIFAST_DISPATCH(mean_of_rows, s.x.data(), s.d, rows.data(), 3, mean.data());
    double norm = 0, squares = 0;
    VIFAST_DISPATCH(difference_of_means, s.x.data(), s.d, rows.data(), 3, others.data(), 2, 0.5f, diff.data(), &norm);
    auto at = [&](int64_t r, int64_t k) { return static_cast<double>(s.x[r * s.d + k]); };
    for (int64_t k = 0; k < s.d; ++k) {
      const double first = (at(1, k) + at(4, k) + at(8, k)) / 3, second = (at(0, k) + at(2, k)) / 2;
      CHECK(near(mean[k], first));
      CHECK(near(diff[k], first - second + 0.5));
      squares += (first - second + 0.5) * (first - second + 0.5);
    }
    CHECK(near(norm, std::sqrt(squares)));
    VIFAST_DISPATCH(scatter_row, diff.data(), s.d, 2.0, rows.data(), 3, out.data());
    CHECK(near(out[4 * s.d + 7], 2.0 * diff[7]));
    CHECK(out[2 * s.d + 7] == 0.0f);
    VIFAST_DISPATCH(mean_of_rows, s.x.data(), s.d, rows.data(), 0, mean.data());
    for (float value : mean) CHECK(value == 0.0f);
  });
}

}  // namespace
}  // namespace vifast
