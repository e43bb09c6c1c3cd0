// Exact search behind a tiled product, of float32 or bfloat16. The product gives every key up to a proven error; a query keeps the rows
// whose key may still be among its k smallest (k and a few), and those are scored again in float64 from the rows as given.
// The answer is therefore a function of the features alone: no tile size, thread count or BLAS can change it, and equal rows
// tie exactly, to the lower index. Where so many rows are nearly equal that the candidates do not fit, they are scored at
// once and cut to the best k, so memory stays bounded and nothing is ever given up.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "batch_hard.h"
#include "isa.h"
#include "score_inl.h"

namespace vifast {

struct Rows {  // [n, d], contiguous
  const void* data;
  RowType type;
  int64_t d;
};

// `growth`: what the products' own arithmetic may add to their error, 1 for sums of float32 in any order.
inline KeyError key_error(Metric metric, int64_t d, double growth) {
  return {hard_slack(d) * growth, 4 * std::ldexp(static_cast<double>(d), -126), metric};
}

struct Candidate {
  double lower, upper;  // bounds of the key; equal once it is exact
  int64_t index;        // row of the gallery
};

struct TopkState {  // of n queries
  int64_t k, room;       // wanted, and held at most; room > k
  Candidate* candidate;  // [n, room]
  int64_t* count;        // [n]
  double* worst;         // [n] the k-th smallest key is at most this
};

// What a product knows of its float32 rows: their norms, and where it multiplied bfloat16 roundings of them the norms of what
// the rounding took away (null: it multiplied the rows themselves). With a = a' + e the products differ by
// |a.b - a'.b'| <= |e_a| |b| + |a'| |e_b|.
struct RowNorms {
  const double *norm, *lost;
};

// The gallery rows of a tile: the key of column c is offset_q + base[c] - scale[c] * product, up to a proven error. A column
// whose products could overflow or vanish has base -inf: it is always a candidate, without bounds.
struct TopkColumns {
  int64_t first, count;
  RowNorms rows;              // [count]
  const uint8_t* exclude;     // [n, count], nonzero: not wanted; may be null
  std::vector<float> base, scale;
  double least, most;         // norms of the columns that have bounds
  double most_lost;           // of them too: rows.lost, for the cosine as a share of the norm
  TopkColumns(Metric metric, RowNorms rows, int64_t first, int64_t count, const uint8_t* exclude);
};

// A tile of products [n, columns]: float32 of float32 rows, or bfloat16 of bfloat16 rows, summed in float32.
struct TopkTile {
  const void* data;
  bool half;
};

// Norms of float32 rows [r0, r1), accumulated in float64.
VIFAST_DECLARE(topk_norms, (const float* rows, int64_t d, int64_t r0, int64_t r1, double* norm))

// The same, with the rows rounded to bfloat16 and the norms of what is lost.
VIFAST_DECLARE(topk_round, (const float* rows, int64_t d, int64_t r0, int64_t r1, uint16_t* half, double* norm, double* lost))

constexpr int64_t kTopkStep = 64;  // columns tested at once before any of them is looked at

// Largest relative error of a product by its rounding to bfloat16, and a little for how the bound itself is computed.
constexpr float kHalfShare = 0x1p-8f * (1 + 0x1p-6f);

// *block = first multiple of kTopkStep from `start` whose columns hold a key that is not above `limit`, or at least `cols`;
// hit [kTopkStep]: 1 where that is so, else 0. In a half tile a key is taken as low as its product's rounding allows.
VIFAST_DECLARE(topk_next,
               (TopkTile tile, int64_t offset, const float* base, const float* scale, int64_t start, int64_t cols, float limit,
                int64_t* block, uint8_t* hit))

// Makes the keys of candidates exact. query: float32 for half types, else as the gallery; scratch [d].
VIFAST_DECLARE(topk_score, (Metric metric, const void* query, Rows gallery, Candidate* candidate, int64_t n, float* scratch))

// Folds rows [q0, q1) of a tile of products; `norms` are of the queries as multiplied. offset_q is 1 for cosine, 0 for dot, the
// squared norm for sqeuclidean. Returns how many candidates had to be scored on the way: many, and the products were too coarse.
int64_t topk_fold(TopkTile tile, const TopkColumns& columns, Metric metric, const void* query, RowNorms norms, Rows gallery, int64_t q0,
                  int64_t q1, TopkState state);

// The best k of queries [q0, q1) by rising key, ties by lower index; index -1 and key +inf where fewer were found.
void topk_finish(Metric metric, const void* query, Rows gallery, int64_t q0, int64_t q1, TopkState state, double* key, int64_t* index);

}  // namespace vifast
