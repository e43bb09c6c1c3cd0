#include <vector>

#include "positives.h"

namespace vifast {

namespace {

// Distinct identities, the query's own left out, that each trial has ahead of its nearest positive; at most `limit`.
struct Identities {
  std::vector<uint16_t> seen;    // [identities] bit t: counted in trial t
  std::vector<uint16_t> active;  // [places] trials whose nearest positive is at this place or behind it

  void count(const int32_t* place, const int64_t* nearest, uint16_t asked, RankGallery g, RankTrials trials, int32_t own,
             int64_t limit, int64_t* found) {
    int64_t last = -1;
    for (int64_t t = 0; t < trials.trials; ++t) {
      found[t] = 0;
      if (asked >> t & 1) last = std::max(last, nearest[t]);
    }
    active.assign(last + 1, 0);
    for (int64_t t = 0; t < trials.trials; ++t) {
      for (int64_t k = 0; (asked >> t & 1) && k <= nearest[t]; ++k) active[k] |= static_cast<uint16_t>(1u << t);
    }
    seen.assign(g.identities, 0);
    uint16_t live = asked;
    for (int64_t c = 0; c < g.size && live; ++c) {
      if (place[c] > last || g.identity[c] == own) continue;
      unsigned fresh = static_cast<unsigned>(trials.member[c]) & active[place[c]] & live & ~seen[g.identity[c]];
      seen[g.identity[c]] |= static_cast<uint16_t>(fresh);
      for (; fresh; fresh &= fresh - 1) {
        const int t = __builtin_ctz(fresh);
        if (++found[t] >= limit) live &= static_cast<uint16_t>(~(1u << t));
      }
    }
  }
};

}  // namespace

template <class T>
void rank_trial_rows(RankKeys<T> keys, RankGallery g, RankTrials trials, RankQueries queries, int64_t q0, int64_t q1,
                     RankResult out) {
  const int64_t count = trials.trials;
  std::vector<T> row(g.size);
  std::vector<int32_t> place(g.size);
  std::vector<int64_t> histogram;
  std::vector<int64_t> ranks[kTrials];
  Positives<T> pos;
  Identities identities;
  for (int64_t q = q0; q < q1; ++q) {
    double *ap = out.ap + q * count, *inp = out.inp + q * count;
    int64_t* first = out.first + q * count;
    for (auto& list : ranks) list.clear();
    const bool bad = !pos.gather(keys, g, queries, q, row.data());
    const int64_t p = pos.size();
    int64_t nearest[kTrials] = {}, before[kTrials] = {};
    if (p > 0) {
      pos.sort(row.data());
      VIFAST_DISPATCH(rank_places, row.data(), g.size, pos.value.data(), pos.index.data(), p, place.data());
      histogram.resize(p * kTrials);
      VIFAST_DISPATCH(rank_trial_histogram, place.data(), trials.member, g.size, p, histogram.data());
    }
    for (int64_t k = 0; k < p; ++k) {
      for (int64_t t = 0; t < count; ++t) {
        before[t] += histogram[k * kTrials + t];  // columns ahead of the positive, and itself where the trial has it
        if (!(trials.member[pos.index[k]] >> t & 1)) continue;
        if (ranks[t].empty()) nearest[t] = k;
        ranks[t].push_back(before[t]);
      }
    }
    unsigned asked = 0;
    for (int64_t t = 0; t < count; ++t) {
      rank_summary(ranks[t].data(), static_cast<int64_t>(ranks[t].size()), ap + t, inp + t);
      first[t] = bad ? -1 : ranks[t].empty() ? 0 : ranks[t].front();
      if (queries.per_identity && first[t] > 1) asked |= 1u << t;
    }
    if (!asked) continue;
    int64_t others[kTrials];
    identities.count(place.data(), nearest, static_cast<uint16_t>(asked), g, trials, queries.identity[q], queries.limit,
                     others);
    for (int64_t t = 0; t < count; ++t) {
      if (asked >> t & 1) first[t] = others[t] + 1;
    }
  }
}

template void rank_trial_rows(RankKeys<float>, RankGallery, RankTrials, RankQueries, int64_t, int64_t, RankResult);
template void rank_trial_rows(RankKeys<double>, RankGallery, RankTrials, RankQueries, int64_t, int64_t, RankResult);

}  // namespace vifast
