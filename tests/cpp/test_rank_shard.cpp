#include <algorithm>
#include <memory>
#include <set>

#include "check.h"
#include "parallel.h"
#include "ranking.h"

namespace vifast {
namespace {

// A gallery of g rows in three parts, one of them empty, against a sort of all.
void check_parts(int64_t g, int32_t identities, bool own_only, bool ties) {
  const int64_t q = 7, limit = identities;
  std::mt19937 random(3);
  std::vector<double> keys(q * g);
  for (double& key : keys) key = static_cast<double>(ties ? random() % 5 : random());
  std::vector<int32_t> id(g), cam(g), own(q), drop(q);
  for (int32_t& i : id) i = static_cast<int32_t>(random() % identities);
  for (int32_t& c : cam) c = static_cast<int32_t>(random() % 3);
  for (int32_t& i : own) i = static_cast<int32_t>(random() % identities);
  for (int32_t& c : drop) c = static_cast<int32_t>(random() % 4) - 1;
  std::vector<int64_t> begin = {0}, row;
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < g; ++j) {
      if (id[j] == own[i]) row.push_back(j);
    }
    begin.push_back(static_cast<int64_t>(row.size()));
  }
  const RankSlots slots{begin.data(), row.data()};
  const std::vector<int64_t> bounds = {0, g / 3, g / 3, g};
  std::vector<std::vector<double>> part(3);
  std::vector<double> value(row.size(), 0), part_value(row.size());
  std::vector<int64_t> count(row.size(), 0), part_count(row.size());
  std::vector<std::set<int32_t>> ahead(q);
  for (int step = 0; step < 3; ++step) {  // keys, counts, identities: each of all parts before the next
    for (int p = 0; p < 3; ++p) {
      const int64_t first = bounds[p], size = bounds[p + 1] - first;
      const RankGallery rows{size, id.data() + first, cam.data() + first, nullptr, nullptr, identities};
      if (step == 0) {
        for (int64_t i = 0; i < q; ++i) {
          const auto from = keys.begin() + i * g + first;
          part[p].insert(part[p].end(), from, from + size);
        }
        std::unique_ptr<bool[]> bad(new bool[q]);
        const RankQueries queries{own.data(), drop.data(), own_only, false, 0};
        parallel_for(q, 1, 3, [&](int64_t q0, int64_t q1) {
          rank_shard_keys<double>(part[p].data(), nullptr, nullptr, rows, first, queries, slots, q0, q1, part_value.data(),
                                  bad.get());
        });
        for (int64_t i = 0; i < q; ++i) CHECK(!bad[i]);
        for (size_t s = 0; s < row.size(); ++s) value[s] += part_value[s];
      } else if (step == 1) {
        parallel_for(q, 1, 3, [&](int64_t q0, int64_t q1) {
          rank_shard_count<double>(part[p].data(), size, first, slots, q0, q1, value.data(), part_count.data());
        });
        for (size_t s = 0; s < row.size(); ++s) count[s] += part_count[s];
      } else {
        std::vector<double> one(q);
        std::vector<int64_t> which(q, -1);
        for (int64_t i = 0; i + 1 < q; ++i) {
          if (begin[i] == begin[i + 1] || std::isnan(value[begin[i]])) continue;
          one[i] = value[begin[i]];
          which[i] = row[begin[i]];
        }
        std::vector<int32_t> found(q * limit);
        rank_shard_identities<double>(part[p].data(), rows, first, 0, q, one.data(), which.data(), limit, found.data());
        for (int64_t i = 0; i < q; ++i) {
          for (int64_t f = 0; f < limit; ++f) {
            if (found[i * limit + f] >= 0) CHECK(ahead[i].insert(found[i * limit + f]).second || p > 0);
          }
        }
      }
    }
  }
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t s = begin[i]; s < begin[i + 1]; ++s) {
      auto dropped = [&](int64_t j) { return drop[i] >= 0 && cam[j] == drop[i] && (!own_only || id[j] == own[i]); };
      if (dropped(row[s])) {
        CHECK(std::isnan(value[s]) && count[s] == 0);
        continue;
      }
      int64_t wanted = 0;
      std::set<int32_t> others;
      const double at = keys[i * g + row[s]];
      for (int64_t j = 0; j < g; ++j) {
        const double x = keys[i * g + j];
        if (dropped(j) || !(x < at || (x == at && j < row[s]))) continue;
        ++wanted;
        others.insert(id[j]);
      }
      CHECK(value[s] == at && count[s] == wanted);
      if (s == begin[i] && i + 1 < q) CHECK(ahead[i] == others);
    }
  }
}

TEST(ranks_of_parts_add_up) {
  each_isa([] {
    for (bool own_only : {false, true}) {
      for (bool ties : {false, true}) {
        check_parts(211, 9, own_only, ties);
        check_parts(1500, 2, own_only, ties);  // counted through a histogram
      }
    }
  });
}

}  // namespace
}  // namespace vifast
