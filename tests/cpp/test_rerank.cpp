#include <algorithm>
#include <set>

#include "check.h"
#include "parallel.h"
#include "rerank.h"

namespace vifast {
namespace {

using Matrix = std::vector<std::vector<float>>;

// float32 squared distances by direct difference, as the features' own lists and entries have them.
Matrix distances(const Set& s) {
  Matrix dist(s.n, std::vector<float>(s.n));
  for (int64_t i = 0; i < s.n; ++i) {
    for (int64_t j = 0; j < s.n; ++j) dist[i][j] = static_cast<float>(s.sqdist(i, s, j));
  }
  return dist;
}

std::vector<int32_t> sorted_rows(const Matrix& dist, int64_t i, int64_t listed) {
  std::vector<int32_t> order(listed);
  for (int64_t j = 0; j < listed; ++j) order[j] = static_cast<int32_t>(j);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return dist[i][a] < dist[i][b]; });
  return order;
}

// Lattice points: every distance is exact, and most are tied.
Set lattice(int64_t n, int64_t d, unsigned seed) {
  Set s(n, d, 3, seed);
  for (float& x : s.x) x = std::nearbyint(x);
  s.renorm();
  return s;
}

void check_lists(int64_t q, int64_t g, int64_t d, int64_t length, bool queries_only) {
  const Set s = lattice(q + g, d, 7);
  const Matrix dist = distances(s);
  const RerankRows x{{s.x.data(), RowType::float32, d}, s.x.data(), s.n, q, {Metric::sqeuclidean, false}, s.x.data()};
  std::vector<int32_t> lists(s.n * length);
  std::vector<float> most(s.n), out(q * g), part(std::min<int64_t>(q, 16) * g);
  FeatureLists<float> lister(x, queries_only, length, most.data(), out.data(), 3);
  for (int64_t tile = 0; tile < lister.tiles(); ++tile) lister.fold(tile);
  lister.finish(length, lists.data());
  for (int64_t i = 0; i < s.n; ++i) {
    std::vector<int32_t> expected = sorted_rows(dist, i, queries_only ? q : s.n);
    for (int64_t j = q; queries_only && j < s.n; ++j) expected.push_back(static_cast<int32_t>(j));
    for (int64_t k = 0; k < length; ++k) CHECK(lists[i * length + k] == expected[k]);
    if (!queries_only || q < length) CHECK(near(most[i], *std::max_element(dist[i].begin(), dist[i].end())));
  }
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < g; ++j) CHECK(near(out[i * g + j], dist[i][q + j], 1e-5, 1e-3));
  }
  const int64_t rows = std::min<int64_t>(q, 16);
  std::vector<float> largest(rows, 0.0f);
  feature_distances(x, 0, rows, largest.data(), part.data(), 2);
  CHECK(std::equal(part.begin(), part.end(), out.begin()));
  for (int64_t i = 0; i < rows; ++i) CHECK(largest[i] == *std::max_element(part.begin() + i * g, part.begin() + (i + 1) * g));
}

TEST(rerank_lists_are_sorted_rows) {
  each_isa([] {
    for (bool queries_only : {false, true}) {
      check_lists(20, 33, 5, 9, queries_only);
      check_lists(3, 530, 3, 8, queries_only);
      check_lists(1, 1, 2, 2, queries_only);
    }
  });
}

TEST(folded_distances_are_sorted_too) {
  each_isa([] {
    const Set s = lattice(150, 3, 8);
    const Matrix dist = distances(s);
    const int64_t n = s.n, k = 7, room = 12, half = 70;
    std::vector<float> flat;
    for (const auto& row : dist) flat.insert(flat.end(), row.begin(), row.end());
    for (bool by_columns : {false, true}) {
      std::vector<Neighbour> slots(n * room);
      std::vector<int32_t> count(n), lists(n * k);
      std::vector<float> worst(n, INFINITY), most(n, -INFINITY);
      const NearestState state{k, room, slots.data(), count.data(), worst.data()};
      if (by_columns) {
        CHECK(nearest_fold(flat.data(), half, n, true, 0, state, most.data(), 3));
        CHECK(nearest_fold(flat.data() + half * n, n - half, n, true, half, state, most.data(), 3));
      } else {
        CHECK(nearest_fold(flat.data(), n, n, false, 0, state, most.data(), 3));
      }
      parallel_for(n, 1, 3, [&](int64_t r0, int64_t r1) { nearest_finish(state, 0, r0, r1, lists.data(), k); });
      for (int64_t i = 0; i < n; ++i) {
        const std::vector<int32_t> expected = sorted_rows(dist, i, n);
        CHECK(std::equal(lists.begin() + i * k, lists.begin() + (i + 1) * k, expected.begin()));
        CHECK(most[i] == *std::max_element(dist[i].begin(), dist[i].end()));
      }
    }
    flat[5] = NAN;
    std::vector<float> most(n, 0);
    CHECK(!nearest_fold(flat.data(), n, n, true, 0, {k, 0, nullptr, nullptr, nullptr}, most.data(), 2));
    CHECK(!nearest_fold(flat.data(), n, n, false, 0, {k, 0, nullptr, nullptr, nullptr}, most.data(), 2));
  });
}

TEST(half_rounding_keeps_the_nearest_even) {
  CHECK(round_half(1.0f) == 1.0f);
  CHECK(round_half(1.0f + 0x1p-11f) == 1.0f);  // half way: to the even one
  CHECK(round_half(1.0f + 3 * 0x1p-11f) == 1.0f + 0x1p-9f);
  CHECK(round_half(-1.0f - 0x1p-11f - 0x1p-20f) == -1.0f - 0x1p-10f);
  CHECK(round_half(0x1p-25f) == 0.0f);
  CHECK(round_half(3 * 0x1p-25f) == 0x1p-23f);
  CHECK(round_half(0x1p-14f - 0x1p-26f) == 0x1p-14f);
}

// One row of the whole, with sets, maps and a dense matrix.
TEST(sparse_rows_agree_with_dense_ones) {
  const int64_t q = 25, g = 35, n = q + g, k1 = 6, k2 = 3, length = k1 + 1, narrow = k1 / 2 + 1;
  const Set s = lattice(n, 3, 9);
  const Matrix dist = distances(s);
  std::vector<int32_t> lists;
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<int32_t> row = sorted_rows(dist, i, n);
    lists.insert(lists.end(), row.begin(), row.begin() + length);
  }
  const Lists view{lists.data(), length};
  auto reciprocal = [&](int64_t i, int64_t width) {
    std::set<int32_t> set;
    for (int64_t a = 0; a < width; ++a) {
      const int32_t j = lists[i * length + a];
      if (std::count(lists.begin() + j * length, lists.begin() + j * length + width, i)) set.insert(j);
    }
    return set;
  };

  std::vector<int32_t> wide(n * length), wide_count(n), small(n * narrow), small_count(n), count(n);
  parallel_for(n, 1, 3, [&](int64_t r0, int64_t r1) {
    reciprocal_sets(view, length, r0, r1, wide.data(), wide_count.data());
    reciprocal_sets(view, narrow, r0, r1, small.data(), small_count.data());
  });
  const Sets a{wide.data(), wide_count.data(), length}, b{small.data(), small_count.data(), narrow};
  expanded_sets(a, b, n, 0, n, nullptr, count.data(), nullptr);
  std::vector<int64_t> begin(n + 1, 0);
  for (int64_t i = 0; i < n; ++i) begin[i + 1] = begin[i] + count[i];
  std::vector<int32_t> column(begin[n]);
  parallel_for(n, 1, 3,
               [&](int64_t r0, int64_t r1) { expanded_sets(a, b, n, r0, r1, begin.data(), count.data(), column.data()); });
  for (int64_t i = 0; i < n; ++i) {
    const std::set<int32_t> base = reciprocal(i, length);
    std::set<int32_t> expected = base;
    for (int32_t c : base) {
      const std::set<int32_t> own = reciprocal(c, narrow);
      size_t shared = 0;
      for (int32_t m : own) shared += base.count(m);
      if (3 * shared > 2 * own.size()) expected.insert(own.begin(), own.end());
    }
    CHECK(std::equal(expected.begin(), expected.end(), column.begin() + begin[i]));
    CHECK(static_cast<size_t>(count[i]) == expected.size());
  }

  const RerankRows x{{s.x.data(), RowType::float32, s.d}, s.x.data(), n, q, {Metric::sqeuclidean, true}, nullptr};
  std::vector<float> value(begin[n]);
  feature_entries(x, 0, n, begin.data(), column.data(), value.data());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = begin[i]; e < begin[i + 1]; ++e) CHECK(near(value[e], std::sqrt(dist[i][column[e]])));
  }
  for (float& w : value) w = std::exp(-w);
  parallel_for(n, 1, 3, [&](int64_t r0, int64_t r1) { normalise_rows<false>(begin.data(), r0, r1, value.data()); });
  Matrix v(n, std::vector<float>(n, 0.0f)), mean = v;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t e = begin[i]; e < begin[i + 1]; ++e) v[i][column[e]] = value[e];
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t j = 0; j < k2; ++j) mean[i][c] += v[lists[i * length + j]][c];
      mean[i][c] /= k2;
    }
  }

  std::vector<int64_t> room(n + 1, 0), by_column(n + 1);
  for (int64_t i = 0; i < n; ++i) {
    room[i + 1] = room[i];
    for (int64_t j = 0; j < k2; ++j) room[i + 1] += count[lists[i * length + j]];
  }
  std::vector<int32_t> out_count(n), out_column(room[n]);
  std::vector<float> out_value(room[n]);
  const SparseRows sparse{begin.data(), count.data(), column.data(), value.data()};
  parallel_for(n, 1, 3, [&](int64_t r0, int64_t r1) {
    combine_rows<false>(sparse, n, view, k2, nullptr, r0, r1,
                        {room.data(), out_count.data(), out_column.data(), out_value.data()});
  });
  const SparseRows averaged{room.data(), out_count.data(), out_column.data(), out_value.data()};
  for (int64_t i = 0; i < n; ++i) {
    std::vector<float> dense(n, 0.0f);
    for (int64_t e = room[i]; e < room[i] + out_count[i]; ++e) dense[out_column[e]] = out_value[e];
    CHECK(dense == mean[i]);
  }

  int64_t entries = 0;
  for (int64_t i = q; i < n; ++i) entries += out_count[i];
  std::vector<int32_t> row(entries);
  std::vector<float> held(entries), most(n, 2.0f), blended(q * g, 1.0f), dots(q * g, 1.0f);
  invert_rows(averaged, q, n, n, by_column.data(), row.data(), held.data());
  const Inverted gallery{by_column.data(), row.data(), held.data(), g};
  parallel_for(q, 1, 3, [&](int64_t r0, int64_t r1) {
    jaccard_rows<false>(averaged, gallery, {0.7f, 0.3f}, most.data(), 0, r0, r1, blended.data());
    dot_rows(averaged, gallery, 0, r0, r1, dots.data());
  });
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < g; ++j) {
      float shared = 0, dot = 0;
      for (int64_t c = 0; c < n; ++c) {
        shared += std::min(mean[i][c], mean[q + j][c]);
        dot += mean[i][c] * mean[q + j][c];
      }
      CHECK(near(blended[i * g + j], 0.7f * (1 - shared / (2 - shared)) + 0.3f * 0.5f));
      CHECK(near(dots[i * g + j], 1 - dot));
    }
  }
}

}  // namespace
}  // namespace vifast
