#include "ranking.h"

#include <algorithm>
#include <numeric>

#include "check.h"
#include "parallel.h"

namespace vifast {
namespace {

TEST(ranks_agree_with_a_sort) {
  each_isa([] {
    for (bool own_only : {false, true}) {
      for (bool ties : {false, true}) {
        const int64_t q = 23, g = 211, identities = 9;
        std::mt19937 random(7);
        std::vector<float> keys(q * g);
        for (float& key : keys) key = static_cast<float>(ties ? random() % 5 : random()) / 7;
        std::vector<int32_t> g_id(g), g_cam(g), q_id(q), drop(q);
        for (int32_t& id : g_id) id = static_cast<int32_t>(random() % identities);
        for (int32_t& cam : g_cam) cam = static_cast<int32_t>(random() % 3);
        for (int32_t& id : q_id) id = static_cast<int32_t>(random() % identities);
        for (int32_t& cam : drop) cam = static_cast<int32_t>(random() % 4) - 1;
        std::vector<int64_t> begin(identities + 1), row(g);
        std::iota(row.begin(), row.end(), 0);
        std::stable_sort(row.begin(), row.end(), [&](int64_t a, int64_t b) { return g_id[a] < g_id[b]; });
        for (int32_t id : g_id) ++begin[id + 1];
        std::partial_sum(begin.begin(), begin.end(), begin.begin());
        const RankGallery gallery{g, g_id.data(), g_cam.data(), begin.data(), row.data(), identities};
        const RankQueries queries{q_id.data(), drop.data(), own_only, false, g};
        std::vector<double> ap(q), inp(q);
        std::vector<int64_t> first(q);
        const RankResult out{ap.data(), inp.data(), first.data()};
        parallel_for(q, 1, 3, [&](int64_t q0, int64_t q1) {
          rank_rows<float>({keys.data(), nullptr, nullptr}, gallery, queries, q0, q1, out);
        });
        for (int64_t i = 0; i < q; ++i) {
          std::vector<int64_t> order;
          for (int64_t j = 0; j < g; ++j) {
            const bool dropped = drop[i] >= 0 && g_cam[j] == drop[i] && (!own_only || g_id[j] == q_id[i]);
            if (!dropped) order.push_back(j);
          }
          std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[i * g + a] < keys[i * g + b]; });
          double hits = 0, sum = 0, last = 0, at_first = 0;
          for (size_t k = 0; k < order.size(); ++k) {
            if (g_id[order[k]] != q_id[i]) continue;
            last = static_cast<double>(k + 1);
            sum += ++hits / last;
            if (at_first == 0) at_first = last;
          }
          CHECK(first[i] == static_cast<int64_t>(at_first));
          CHECK(hits == 0 ? std::isnan(ap[i]) : near(ap[i], sum / hits, 1e-12, 0));
          CHECK(hits == 0 ? std::isnan(inp[i]) : near(inp[i], hits / last, 1e-12, 0));
        }
      }
    }
  });
}

TEST(trials_agree_with_their_columns_alone) {
  each_isa([] {
    for (bool ties : {false, true}) {
      const int64_t q = 17, g = 301, identities = 4, trials = 13;
      std::mt19937 random(11);
      std::vector<double> keys(q * g);
      for (double& key : keys) key = ties ? random() % 6 : random();
      std::vector<int32_t> g_id(g), g_cam(g), member(g), q_id(q), drop(q);
      for (int32_t& id : g_id) id = static_cast<int32_t>(random() % identities);
      for (int32_t& cam : g_cam) cam = static_cast<int32_t>(random() % 3);
      for (int32_t& bits : member) bits = static_cast<int32_t>(random() % (1 << trials));
      for (int32_t& id : q_id) id = static_cast<int32_t>(random() % (identities + 1));  // one is nobody's
      for (int32_t& cam : drop) cam = static_cast<int32_t>(random() % 4) - 1;
      const auto grouped = [&](const std::vector<int32_t>& ids, std::vector<int64_t>& begin, std::vector<int64_t>& row) {
        begin.assign(identities + 2, 0);
        row.resize(ids.size());
        std::iota(row.begin(), row.end(), 0);
        std::stable_sort(row.begin(), row.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
        for (int32_t id : ids) ++begin[id + 1];
        std::partial_sum(begin.begin(), begin.end(), begin.begin());
      };
      std::vector<int64_t> begin, row;
      grouped(g_id, begin, row);
      const RankQueries queries{q_id.data(), drop.data(), false, true, 3};
      std::vector<double> ap(q * trials), inp(q * trials);
      std::vector<int64_t> first(q * trials);
      parallel_for(q, 1, 3, [&](int64_t q0, int64_t q1) {
        rank_trial_rows<double>({keys.data(), nullptr, nullptr}, {g, g_id.data(), g_cam.data(), begin.data(), row.data(), identities + 1},
                                {trials, member.data()}, queries, q0, q1, {ap.data(), inp.data(), first.data()});
      });
      for (int64_t t = 0; t < trials; ++t) {
        std::vector<double> x;
        std::vector<int32_t> id, cam;
        for (int64_t c = 0; c < g; ++c) {
          if (!(member[c] >> t & 1)) continue;
          id.push_back(g_id[c]);
          cam.push_back(g_cam[c]);
        }
        for (int64_t i = 0; i < q * g; ++i) {
          if (member[i % g] >> t & 1) x.push_back(keys[i]);
        }
        grouped(id, begin, row);
        std::vector<double> one_ap(q), one_inp(q);
        std::vector<int64_t> one_first(q);
        const int64_t size = static_cast<int64_t>(id.size());
        rank_rows<double>({x.data(), nullptr, nullptr}, {size, id.data(), cam.data(), begin.data(), row.data(), identities + 1}, queries,
                          0, q, {one_ap.data(), one_inp.data(), one_first.data()});
        for (int64_t i = 0; i < q; ++i) {
          CHECK(first[i * trials + t] == one_first[i]);
          if (one_first[i] == 0) continue;
          CHECK(ap[i * trials + t] == one_ap[i]);
          CHECK(inp[i * trials + t] == one_inp[i]);
        }
      }
    }
  });
}

TEST(a_summary_by_hand) {
  std::vector<int64_t> ranks = {6, 1, 0, 3};  // 0: dropped
  double ap = 0, inp = 0;
  rank_summary(ranks.data(), 4, &ap, &inp);
  CHECK(near(ap, (1.0 + 2.0 / 3 + 3.0 / 6) / 3, 1e-15, 0));
  CHECK(near(inp, 3.0 / 6, 1e-15, 0));
}

}  // namespace
}  // namespace vifast
