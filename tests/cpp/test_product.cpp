#include "packed_rows.h"

#include <algorithm>

#include "check.h"

namespace vifast {
namespace {

struct Packed {
  std::vector<float> sq;
  PackedRows rows;
  Packed(const Set& s, const float* mean, int threads) : sq(s.n), rows(s.x.data(), s.n, s.d, mean, sq.data(), threads) {}
};

std::vector<float> all_products(const Packed& a, int64_t n, const Packed& b, int64_t m, bool upper, int threads) {
  std::vector<float> out(n * m, -7.0f);
  products(a.rows, b.rows, {0, n, 0, m}, upper, out.data(), m, threads);
  return out;
}

TEST(products_of_ragged_sets) {
  each_isa([] {
    for (int64_t d : {1, 3, 16, 70, 255, 256, 257, 530}) {
      for (int64_t n : {1, 7, 16, 33}) {
        for (int64_t m : {1, 15, 17, 50}) {
          const Set a(n, d, 3, 1), b(m, d, 3, 2);
          const std::vector<float> out = all_products({a, nullptr, 2}, n, {b, nullptr, 2}, m, false, 1);
          for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < m; ++j) CHECK(near(out[i * m + j], a.dot(i, b, j), 1e-5, 1e-4));
          }
        }
      }
    }
  });
}

TEST(the_mean_is_taken_off_and_norms_are_summed) {
  each_isa([] {
    for (int64_t d : {5, 40, 600}) {
      const Set s(37, d, 3, 1);
      Set moved = s;
      std::vector<float> mean(d);
      for (int64_t k = 0; k < d; ++k) mean[k] = 0.25f * static_cast<float>(k % 5);
      for (int64_t i = 0; i < 37 * d; ++i) moved.x[i] -= mean[i % d];
      const Packed packed(s, mean.data(), 3);
      const std::vector<float> out = all_products(packed, 37, packed, 37, false, 2);
      for (int64_t i = 0; i < 37; ++i) {
        CHECK(near(packed.sq[i], moved.dot(i, moved, i)));
        for (int64_t j = 0; j < 37; ++j) CHECK(near(out[i * 37 + j], moved.dot(i, moved, j), 1e-5, 1e-4));
      }
    }
  });
}

TEST(bits_do_not_depend_on_threads_tiles_or_the_way) {
  each_isa([] {
    const int64_t n = 150, d = 700;
    const Set s(n, d, 3, 4);
    const Packed packed(s, nullptr, 1);
    const std::vector<float> whole = all_products(packed, n, packed, n, false, 1);
    for (int threads : {1, 2, 3, 5}) {
      CHECK(all_products(packed, n, packed, n, false, threads) == whole);
      std::vector<float> tile(50 * 40), half = all_products(packed, n, packed, n, true, threads), small(n * n), sq(n);
      products(packed.rows, packed.rows, {32, 50, 96, 40}, false, tile.data(), 40, threads);
      for (int64_t r = 0; r < 50; ++r) CHECK(std::equal(tile.data() + r * 40, tile.data() + r * 40 + 40, whole.data() + (32 + r) * n + 96));
      mirror(half.data(), n, threads);
      CHECK(half == whole);
      small_products(s.x.data(), n, d, nullptr, small.data(), sq.data(), threads);
      mirror(small.data(), n, threads);
      CHECK(small == whole && sq == packed.sq);
    }
  });
}

TEST(nothing_is_written_outside_the_tile) {
  each_isa([] {
    const Set s(20, 30, 1, 5);
    const Packed packed(s, nullptr, 1);
    std::vector<float> out(20 * 40, -7.0f);
    products(packed.rows, packed.rows, {0, 20, 0, 20}, false, out.data(), 40, 2);
    for (int64_t r = 0; r < 20; ++r) {
      for (int64_t c = 20; c < 40; ++c) CHECK(out[r * 40 + c] == -7.0f);
    }
  });
}

TEST(no_rows_and_no_columns) {
  each_isa([] {
    const Set none(0, 4, 1, 1), flat(3, 0, 1, 1);
    Packed(none, nullptr, 2);
    const Packed packed(flat, nullptr, 2);
    CHECK(all_products(packed, 3, packed, 3, false, 2) == std::vector<float>(9, 0.0f));
    std::vector<float> out(9, 1.0f), sq(3, 1.0f);
    small_products(flat.x.data(), 3, 0, nullptr, out.data(), sq.data(), 2);
    CHECK(out == std::vector<float>(9, 0.0f) && sq == std::vector<float>(3, 0.0f));
  });
}

TEST(the_lower_triangle_mirrors_the_upper) {
  each_isa([] {
    for (int64_t n : {1, 2, 17, 64}) {
      std::vector<float> tile(n * n);
      for (int64_t i = 0; i < n * n; ++i) tile[i] = static_cast<float>(i);
      mirror(tile.data(), n, 2);
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t c = 0; c < n; ++c) CHECK(tile[r * n + c] == static_cast<float>(std::min(r, c) * n + std::max(r, c)));
      }
    }
  });
}

}  // namespace
}  // namespace vifast
