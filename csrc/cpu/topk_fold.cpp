#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../topk.h"

namespace vifast {

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

bool nearer(const Candidate& a, const Candidate& b) { return a.lower != b.lower ? a.lower < b.lower : a.index < b.index; }

class Query {  // one query's part of the state
 public:
  Query(Metric metric, const void* query, Rows gallery, int64_t q, TopkState s, float* scratch)
      : metric_(metric), query_(query), gallery_(gallery), scratch_(scratch), begin_(s.candidate + q * s.room), k_(s.k), room_(s.room),
        count_(s.count[q]), worst_(s.worst[q]) {}

  double worst() const { return worst_; }
  int64_t scored() const { return scored_; }

  void push(Candidate c) {
    begin_[count_++] = c;
    if (count_ < room_) return;
    drop();
    if (count_ > (k_ + room_) / 2) settle();  // near ties: knowing better is cheaper than coming back for every row
  }

  // Keeps what can still be among the best k by the bounds.
  void drop() {
    if (count_ <= k_) return;
    std::nth_element(begin_, begin_ + k_ - 1, begin_ + count_, [](const Candidate& a, const Candidate& b) { return a.upper < b.upper; });
    worst_ = std::min(worst_, begin_[k_ - 1].upper);
    count_ = std::partition(begin_, begin_ + count_, [&](const Candidate& c) { return c.lower <= worst_; }) - begin_;
  }

  // The best k of the candidates, exact and in order.
  void settle() {
    scored_ += count_ - std::count_if(begin_, begin_ + count_, [](const Candidate& c) { return c.lower == c.upper; });
    VIFAST_DISPATCH(topk_score, metric_, query_, gallery_, begin_, count_, scratch_);
    std::sort(begin_, begin_ + count_, nearer);
    count_ = std::min(count_, k_);
    if (count_ == k_) worst_ = std::min(worst_, begin_[k_ - 1].upper);
  }

 private:
  const Metric metric_;
  const void* query_;
  const Rows gallery_;
  float* scratch_;
  Candidate* begin_;
  const int64_t k_, room_;
  int64_t scored_ = 0;
  int64_t& count_;
  double& worst_;
};

const void* row_of(const void* query, Rows gallery, int64_t q) {
  const int64_t width = gallery.type == RowType::float64 ? 8 : 4;
  return static_cast<const char*>(query) + q * gallery.d * width;
}

float product_at(TopkTile tile, int64_t at) {
  if (!tile.half) return static_cast<const float*>(tile.data)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(tile.data)[at]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

TopkColumns::TopkColumns(Metric metric, RowNorms rows, int64_t first, int64_t count, const uint8_t* exclude)
    : first(first), count(count), rows(rows), exclude(exclude), base(count), scale(count), least(kInf), most(0), most_lost(0) {
  for (int64_t c = 0; c < count; ++c) {
    const double n = rows.norm[c];
    if (!(n <= kMostNorm) || (metric == Metric::cosine && n < kLeastNorm)) {
      base[c] = -std::numeric_limits<float>::infinity();
      continue;
    }
    base[c] = metric == Metric::sqeuclidean ? static_cast<float>(n * n) : 0.0f;
    scale[c] = metric == Metric::cosine ? static_cast<float>(1 / n) : metric == Metric::dot ? 1.0f : 2.0f;
    least = std::min(least, n);
    most = std::max(most, n);
    if (rows.lost) most_lost = std::max(most_lost, metric == Metric::cosine ? rows.lost[c] / n : rows.lost[c]);
  }
}

int64_t topk_fold(TopkTile tile, const TopkColumns& t, Metric metric, const void* query, RowNorms norms, Rows gallery, int64_t q0,
                  int64_t q1, TopkState state) {
  // Rounding to bfloat16 may raise either norm by 2^-8.
  const KeyError error = key_error(metric, gallery.d, tile.half ? 1 + 0x1p-6 : 1);
  const double share = tile.half ? kHalfShare : 0;
  std::vector<float> scratch(gallery.d);
  int64_t scored = 0;
  for (int64_t q = q0; q < q1; ++q) {
    const int64_t row = q * t.count;
    const uint8_t* exclude = t.exclude ? t.exclude + row : nullptr;
    Query own(metric, row_of(query, gallery, q), gallery, q, state, scratch.data());
    const double norm = norms.norm[q], lost = norms.lost ? norms.lost[q] : 0;
    const double offset = metric == Metric::sqeuclidean ? norm * norm : metric == Metric::cosine ? 1 : 0;
    const bool bounded = norm <= kMostNorm;
    const double width = std::max(error(norm, t.least), error(norm, t.most)) + error.rounding(norm, lost, t.most, t.most_lost);
    auto limit = [&] {  // rounded up
      return bounded ? std::nextafter(static_cast<float>(own.worst() - offset + width), INFINITY) : INFINITY;
    };
    alignas(64) uint8_t hit[kTopkStep];
    for (int64_t block = 0;; block += kTopkStep) {
      VIFAST_DISPATCH(topk_next, tile, row, t.base.data(), t.scale.data(), block, t.count, limit(), &block, hit);
      if (block >= t.count) break;
      for (int64_t part = 0; part < kTopkStep; part += 8) {
        uint64_t hits;
        std::memcpy(&hits, hit + part, sizeof(hits));
        if (hits == 0) continue;
        for (int64_t c = block + part; c < block + part + 8; ++c) {
          if (!hit[c - block] || (exclude && exclude[c])) continue;
          const float product = t.scale[c] * product_at(tile, row + c);
          const double key = offset + (t.base[c] - product);
          const double column = t.rows.norm[c], gone = t.rows.lost == nullptr ? 0 : t.rows.lost[c];
          const double e = error(norm, column) + share * std::fabs(product) +
                           error.rounding(norm, lost, column, metric == Metric::cosine ? gone / column : gone);
          const bool known = bounded && std::isfinite(key);
          const Candidate candidate{known ? key - e : -kInf, known ? key + e : kInf, t.first + c};
          if (candidate.lower <= own.worst()) own.push(candidate);
        }
      }
    }
    scored += own.scored();
  }
  return scored;
}

void topk_finish(Metric metric, const void* query, Rows gallery, int64_t q0, int64_t q1, TopkState s, double* key, int64_t* index) {
  std::vector<float> scratch(gallery.d);
  for (int64_t q = q0; q < q1; ++q) {
    Query own(metric, row_of(query, gallery, q), gallery, q, s, scratch.data());
    own.drop();
    own.settle();
    for (int64_t i = 0; i < s.k; ++i) {
      const bool found = i < s.count[q];
      const Candidate c = found ? s.candidate[q * s.room + i] : Candidate{kInf, kInf, -1};
      key[q * s.k + i] = c.lower;
      index[q * s.k + i] = c.index;
    }
  }
}

}  // namespace vifast
