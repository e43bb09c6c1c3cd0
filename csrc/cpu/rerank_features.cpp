#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "../parallel.h"
#include "../rerank.h"

namespace vifast {

namespace {

constexpr int64_t kGrain = 1 << 14;  // elements below which a second thread does not pay
constexpr int64_t kSpare = 64;       // candidates held beyond those that are wanted

int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

// Memory of one tile of n x m pairs.
std::unique_ptr<float[]> buffer(int64_t n, int64_t m) {
  return std::unique_ptr<float[]>(new float[std::min(n, kTile) * std::min(m, kTile)]);
}

// One of the two sets, as it is multiplied.
struct Packed {
  int64_t first, n;  // rows of the whole
  PackedRows rows;
  std::vector<double> norm;
  std::vector<float> sq;

  Packed(const RerankRows& x, int64_t first, int64_t n, int threads) : first(first), n(n), norm(n), sq(n) {
    const int64_t d = x.rows.d;
    rows = PackedRows(x.keyed + first * d, n, d, x.origin, sq.data(), threads);
    const float* panels = rows.from(0);
    parallel_for(panels_of(n), std::max<int64_t>(1, kGrain / (kPanel * d)), threads,
                 [&](int64_t p0, int64_t p1) { VIFAST_DISPATCH(panel_norms, panels, d, n, p0, p1, norm.data()); });
    for (int64_t i = 0; i < n; ++i) sq[i] = static_cast<float>(norm[i] * norm[i]);
  }
};

// Exact distances of row i to rows of the whole; entries is scratch.
template <class Each>
void score_row(const RerankRows& x, int64_t i, std::vector<Candidate>& entries, Each each) {
  const int64_t width = x.rows.d * (x.rows.type == RowType::float64 ? 8 : 4);
  const void* own = static_cast<const char*>(x.rows.data) + i * width;
  VIFAST_DISPATCH(topk_score, x.how.metric, own, x.rows, entries.data(), static_cast<int64_t>(entries.size()), nullptr);
  for (size_t k = 0; k < entries.size(); ++k) each(k, entries[k].index, entries[k].lower);
}

// Rows [r0, r1) of a tile of products become distances in `out`; those of close pairs are direct differences.
void write_distances(const RerankRows& x, const float* tile, const Packed& a, int64_t a0, int64_t r0, int64_t r1,
                     const Packed& b, int64_t b0, int64_t cols, float* out, int64_t stride, float* most) {
  const float *row_sq = a.sq.data() + a0, *col_sq = b.sq.data() + b0;
  std::vector<uint8_t> close(r1);
  VIFAST_DISPATCH(tile_distances, tile, r0, r1, cols, x.how, row_sq, col_sq, out, stride, close.data(), most);
  std::vector<Candidate> entries;
  for (int64_t r = r0; r < r1; ++r) {
    float* line = out + r * stride;
    if (close[r]) {
      entries.clear();
      for (int64_t c = 0; c < cols; ++c) {
        const float base = x.how.metric == Metric::cosine ? 1.0f : row_sq[r] + col_sq[c];
        if (line[c] <= kClose * base) entries.push_back({0, 1, b.first + b0 + c});
      }
      score_row(x, a.first + a0 + r, entries,
                [&](size_t, int64_t j, double dist) { line[j - b.first - b0] = static_cast<float>(dist); });
    }
    for (int64_t c = 0; x.how.root && c < cols; ++c) line[c] = std::sqrt(line[c]);
  }
}

}  // namespace

template <class T>
struct FeatureLists<T>::State {
  // One tile of the pairs of two sets; of a set with itself those of the upper triangle exist.
  struct Step {
    const Packed *a, *b;
    bool a_listed, b_listed;
    float* out;  // distances of the tile's rows, b.n apart; may be null
    Tile tile;
  };

  const RerankRows x;
  const int threads;
  const Packed queries, gallery;
  float* most;
  const std::unique_ptr<float[]> tile, flipped;
  std::vector<Step> steps;
  std::vector<Candidate> slots;
  std::vector<int64_t> count;
  std::vector<double> worst;
  TopkState state;

  State(RerankRows x, int64_t k, float* most, int threads)
      : x(x),
        threads(threads),
        queries(x, 0, x.num_query, threads),
        gallery(x, x.num_query, x.n - x.num_query, threads),
        most(most),
        tile(buffer(x.n, x.n)),
        flipped(buffer(x.n, x.n)),
        slots(x.n * (k + kSpare)),
        count(x.n, 0),
        worst(x.n, std::numeric_limits<double>::infinity()),
        state{k, k + kSpare, slots.data(), count.data(), worst.data()} {}

  TopkState from(int64_t row) const {
    return {state.k, state.room, state.candidate + row * state.room, state.count + row, state.worst + row};
  }
  const T* row(int64_t i) const { return static_cast<const T*>(x.rows.data) + i * x.rows.d; }

  // A tile of products with `a` along its rows: into their largest distances, the output, and their candidates.
  void fold(const float* tile, const Packed& a, int64_t a0, int64_t n, const Packed& b, int64_t b0, int64_t m, bool listed,
            float* most, float* out, int64_t stride) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / m), first = a.first + a0;
    const TopkColumns columns(x.how.metric, {b.norm.data() + b0, nullptr}, b.first + b0, m, nullptr);
    const TopkTile products{tile, false};
    const RowNorms norms{a.norm.data() + a0, nullptr};
    parallel_for(n, grain, threads, [&](int64_t r0, int64_t r1) {
      if (out) {
        write_distances(x, tile, a, a0, r0, r1, b, b0, m, out, stride, most + first);
      } else {
        VIFAST_DISPATCH(tile_distances, tile, r0, r1, m, x.how, a.sq.data() + a0, b.sq.data() + b0, nullptr, 0, nullptr,
                        most + first);
      }
      if (listed) topk_fold(products, columns, x.how.metric, row(first), norms, x.rows, r0, r1, from(first));
    });
  }

  // All pairs of two sets, each to be multiplied once.
  void plan(const Packed& a, const Packed& b, bool a_listed, bool b_listed, float* out) {
    each_tile(a.n, b.n, &a == &b, [&](Tile t) {
      steps.push_back({&a, &b, a_listed, b_listed, out ? out + t.row0 * b.n + t.col0 : nullptr, t});
    });
  }

  void run(const Step& step) const {
    const Packed &a = *step.a, &b = *step.b;
    const Tile t = step.tile;
    const bool diagonal = &a == &b && t.row0 == t.col0;
    products(a.rows, b.rows, t, diagonal, tile.get(), t.cols, threads);
    if (diagonal) mirror(tile.get(), t.rows, threads);
    fold(tile.get(), a, t.row0, t.rows, b, t.col0, t.cols, step.a_listed, most, step.out, b.n);
    if (diagonal) return;
    parallel_for(panels_of(t.cols), 4, threads, [&](int64_t p0, int64_t p1) {
      VIFAST_DISPATCH(flip_tile, tile.get(), t.rows, t.cols, p0 * kPanel, std::min(p1 * kPanel, t.cols), flipped.get());
    });
    fold(flipped.get(), b, t.col0, t.cols, a, t.row0, t.rows, step.b_listed, most, nullptr, 0);
  }

  void finish(int64_t fill, int64_t length, int32_t* lists) {
    const int64_t k = state.k;
    std::vector<double> key(x.n * k);
    std::vector<int64_t> index(x.n * k);
    parallel_for(x.n, 1, threads, [&](int64_t r0, int64_t r1) {
      topk_finish(x.how.metric, row(0), x.rows, r0, r1, state, key.data(), index.data());
      for (int64_t i = r0; i < r1; ++i) {
        for (int64_t j = 0; j < length; ++j)
          lists[i * length + j] = static_cast<int32_t>(j < k ? index[i * k + j] : fill + j - k);
      }
    });
  }
};

template <class T>
FeatureLists<T>::FeatureLists(RerankRows x, bool queries_only, int64_t length, float* most, float* dist, int threads)
    : state_(new State(x, queries_only ? std::min(length, x.num_query) : length, most, threads)) {
  State& s = *state_;
  std::fill(most, most + x.n, 0.0f);
  s.plan(s.queries, s.queries, true, true, nullptr);
  s.plan(s.queries, s.gallery, !queries_only, true, dist);
  if (!queries_only || x.num_query < length) s.plan(s.gallery, s.gallery, !queries_only, !queries_only, nullptr);
}

template <class T>
FeatureLists<T>::~FeatureLists() = default;

template <class T>
int64_t FeatureLists<T>::tiles() const {
  return static_cast<int64_t>(state_->steps.size());
}

template <class T>
void FeatureLists<T>::fold(int64_t tile) {
  state_->run(state_->steps[tile]);
}

template <class T>
void FeatureLists<T>::finish(int64_t length, int32_t* lists) {
  state_->finish(state_->x.num_query, length, lists);
}

void feature_distances(RerankRows x, int64_t q0, int64_t q1, float* most, float* dist, int threads) {
  const int64_t q = x.num_query, g = x.n - q;
  const Packed queries(x, q0, q1 - q0, threads), gallery(x, q, g, threads);
  const auto tile = buffer(q1 - q0, g);
  each_tile(q1 - q0, g, false, [&](Tile t) {
    products(queries.rows, gallery.rows, t, false, tile.get(), t.cols, threads);
    parallel_for(t.rows, std::max<int64_t>(1, kGrain / t.cols), threads, [&](int64_t r0, int64_t r1) {
      if (dist) {
        write_distances(x, tile.get(), queries, t.row0, r0, r1, gallery, t.col0, t.cols, dist + t.row0 * g + t.col0, g,
                        most + t.row0);
      } else {
        VIFAST_DISPATCH(tile_distances, tile.get(), r0, r1, t.cols, x.how, queries.sq.data() + t.row0,
                        gallery.sq.data() + t.col0, nullptr, 0, nullptr, most + t.row0);
      }
    });
  });
}

void feature_entries(RerankRows x, int64_t r0, int64_t r1, const int64_t* begin, const int32_t* column, float* value) {
  std::vector<Candidate> entries;
  for (int64_t i = r0; i < r1; ++i) {
    entries.clear();
    for (int64_t e = begin[i]; e < begin[i + 1]; ++e) entries.push_back({0, 1, column[e]});
    score_row(x, i, entries, [&](size_t k, int64_t, double dist) {
      value[begin[i] + static_cast<int64_t>(k)] = static_cast<float>(x.how.root ? std::sqrt(dist) : dist);
    });
  }
}

template class FeatureLists<float>;
template class FeatureLists<double>;

}  // namespace vifast
