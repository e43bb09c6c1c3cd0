// k-reciprocal re-ranking (Zhong et al. 2017) on sparse rows: no N x N matrix. Rows 0 .. N - 1 are the queries, then the
// gallery. A row's list holds its nearest rows in order; its weights V live on a handful of columns; two rows are compared
// through the columns they share, by an inverted index of the gallery's weights. See rerank_inl.h for the arithmetic.
#pragma once
#include <cstdint>
#include <memory>

#include "isa.h"
#include "packed_rows.h"
#include "rerank_inl.h"
#include "topk.h"

namespace vifast {

// ---- neighbour lists from given distances

struct Neighbour {
  float value;
  int32_t index;
};

struct NearestState {  // of n rows
  int64_t k, room;     // wanted, and held at most; room > k
  Neighbour* slot;     // [n, room]
  int32_t* count;      // [n]
  float* worst;        // [n] the k-th smallest value so far, +inf before
};

// x [rows, cols], contiguous, holds distances of the state's rows from rows first, first + 1, ...: one of them a row of x, or
// with by_columns a column of x. Blocks of a row come by rising index, so that ties stay with the lower one. A state without
// slots keeps no list. most [n] becomes the largest distance of every row. False where a distance is not finite.
bool nearest_fold(const float* x, int64_t rows, int64_t cols, bool by_columns, int64_t first, NearestState state, float* most,
                  int threads);

// lists [n, length] of rows [r0, r1); places that no candidate fills get `fill`, fill + 1, ...
void nearest_finish(NearestState state, int64_t fill, int64_t r0, int64_t r1, int32_t* lists, int64_t length);

constexpr int64_t kNearestStep = 64;  // values tested at once before any of them is looked at

// *block = first multiple of kNearestStep from `start` whose values hold one below worst (`each`: below worst of its own
// place), or at least n; hit [kNearestStep]: 1 where that is so, else 0.
VIFAST_DECLARE(nearest_next,
               (const float* x, const float* worst, bool each, int64_t start, int64_t n, int64_t* block, uint8_t* hit))

// most = max(most, x), one number or (`each`) n; *finite becomes false where a value is not finite.
VIFAST_DECLARE(nearest_most, (const float* x, bool each, int64_t n, float* most, bool* finite))

// ---- neighbour lists from features

// What a tile of products is made of: squared norms of the rows that were multiplied, and what the distance is.
struct TileDistance {
  Metric metric;  // cosine (of unit rows) or sqeuclidean
  bool root;
};

// Rows [r0, r1) of a tile: most = max(most, distances). out (may be null, `stride` apart) = distances before the root; close
// [rows] = whether one of them is below kClose of its squared norms, where a product has lost digits.
constexpr float kClose = 1.0f / 64;
VIFAST_DECLARE(tile_distances, (const float* tile, int64_t r0, int64_t r1, int64_t cols, TileDistance how, const float* row_sq,
                                const float* col_sq, float* out, int64_t stride, uint8_t* close, float* most))

// out [cols, rows] = the tile's columns [c0, c1) as rows.
VIFAST_DECLARE(flip_tile, (const float* tile, int64_t rows, int64_t cols, int64_t c0, int64_t c1, float* out))

// Norms of packed rows [16 p0, 16 p1), n at most, accumulated in float64.
VIFAST_DECLARE(panel_norms, (const float* panels, int64_t d, int64_t n, int64_t p0, int64_t p1, double* norm))

struct RerankRows {
  Rows rows;           // [n, d] as given, float32 or float64; they decide
  const float* keyed;  // [n, d] what is multiplied: unit rows for the cosine
  int64_t n, num_query;
  TileDistance how;
  const float* origin;  // [d] taken from what is multiplied: any row near the others; null for the cosine
};

// The lists of all rows, made of tiles of pairs: fold each from 0 to tiles() - 1, then finish. lists [n, length]: the nearest
// rows of every row, exactly, ties by lower index; with queries_only the nearest queries, then, where those are too few,
// gallery rows from the first. most [n]: the largest distance of every row; with queries_only and at least `length` queries,
// of the queries alone. dist [num_query, n - num_query] may be null.
template <class T>
class FeatureLists {
 public:
  FeatureLists(RerankRows x, bool queries_only, int64_t length, float* most, float* dist, int threads);
  ~FeatureLists();
  int64_t tiles() const;
  void fold(int64_t tile);
  void finish(int64_t length, int32_t* lists);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// most [q1 - q0] becomes the largest distance of queries [q0, q1) to the gallery where that is more; dist [q1 - q0,
// n - num_query] may be null: the distances. A pair has the bits that it has in FeatureLists, whatever the other rows are.
void feature_distances(RerankRows x, int64_t q0, int64_t q1, float* most, float* dist, int threads);

// Distances of every row i to the columns begin[i] .. begin[i + 1] - 1, by direct computation in float64.
void feature_entries(RerankRows x, int64_t r0, int64_t r1, const int64_t* begin, const int32_t* column, float* value);

// ---- sparse rows

struct SparseRows {  // entries of row i: begin[i] .. begin[i] + count[i] - 1, by rising column
  const int64_t* begin;
  const int32_t* count;
  const int32_t* column;
  const float* value;
};

struct SparseOut {
  const int64_t* begin;  // room of row i: begin[i] .. begin[i + 1] - 1
  int32_t* count;
  int32_t* column;
  float* value;
};

struct Lists {
  const int32_t* index;  // [n, length]
  int64_t length;
};

// Reciprocal neighbours of rows [r0, r1) among the first `width` of each list: set [n, width], count [n].
void reciprocal_sets(Lists lists, int64_t width, int64_t r0, int64_t r1, int32_t* set, int32_t* count);

struct Sets {
  const int32_t* member;  // [n, width]
  const int32_t* count;   // [n]
  int64_t width;
};

// The expanded set of every row (columns below n): its own, and the narrow set of each member that joins. column null: only
// the count.
void expanded_sets(Sets wide, Sets narrow, int64_t n, int64_t r0, int64_t r1, const int64_t* begin, int32_t* count,
                   int32_t* column);

// value /= sum of its row, the sum in NumPy's pairwise order.
template <bool half>
void normalise_rows(const int64_t* begin, int64_t r0, int64_t r1, float* value);

// Row i of `out` = sum over the first k neighbours j of weight[i, k] times row j of v, scaled to unit length; without weights
// the mean.
template <bool half>
void combine_rows(SparseRows v, int64_t n, Lists lists, int64_t k, const float* weight, int64_t r0, int64_t r1, SparseOut out);

// The entries of rows [first, n) by column: of column c begin[c] .. begin[c + 1] - 1, by rising row less `first`.
void invert_rows(SparseRows v, int64_t first, int64_t n, int64_t columns, int64_t* begin, int32_t* row, float* value);

struct Inverted {
  const int64_t* begin;
  const int32_t* row;
  const float* value;
  int64_t rows;  // of the gallery
};

// Rows [r0, r1) of dist [n, rows] hold distances of queries first + r and become the re-ranked ones. most: of all queries.
template <bool half>
void jaccard_rows(SparseRows v, Inverted gallery, Blend blend, const float* most, int64_t first, int64_t r0, int64_t r1,
                  float* dist);

// The dense part of that: a row [n] of distances where no column is shared.
VIFAST_DECLARE(blend_row, (float* dist, int64_t n, float most, Blend blend))

// The same rows become 1 - v_q . v_g.
void dot_rows(SparseRows v, Inverted gallery, int64_t first, int64_t r0, int64_t r1, float* dist);

}  // namespace vifast
