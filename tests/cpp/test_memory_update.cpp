#include "memory_update.h"

#include "check.h"

namespace vifast {
namespace {

TEST(memory_rows) {
  each_isa([] {
    for (int64_t d : {int64_t{1}, int64_t{7}, int64_t{300}}) {
      const Set s(2, d, 3, 5);
      double product = 0, expected = 0, square = 0;
      VIFAST_DISPATCH(row_product, s.x.data(), s.x.data() + d, d, &product);
      std::vector<float> row(s.x.begin(), s.x.begin() + d);
      VIFAST_DISPATCH(blend_unit_row, row.data(), s.x.data() + d, d, 0.25);
      for (int64_t k = 0; k < d; ++k) {
        expected += static_cast<double>(s.x[k]) * s.x[d + k];
        const double u = 0.25 * s.x[k] + 0.75 * s.x[d + k];
        square += u * u;
      }
      CHECK(near(product, expected));
      for (int64_t k = 0; k < d; ++k) CHECK(near(row[k], (0.25 * s.x[k] + 0.75 * s.x[d + k]) / std::sqrt(square)));
    }
    std::vector<float> zero(5, 0.0f);
    VIFAST_DISPATCH(blend_unit_row, zero.data(), zero.data(), 5, 0.5);
    for (float value : zero) CHECK(value == 0.0f);
  });
}

}  // namespace
}  // namespace vifast
