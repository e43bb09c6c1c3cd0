// Average precision, inverse negative penalty and first hits without sorting the gallery: the rank of a positive is one
// plus the number of kept gallery rows ahead of it, so a query costs P x G compares for P positives (a binary search of
// G values among P where P is large), and no memory but a copy of its row.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// Identities and cameras are codes: equal where the caller's values are equal.
struct RankGallery {
  int64_t size;
  const int32_t* identity;  // [size]
  const int32_t* camera;    // [size]
  const int64_t* begin;     // [identities + 1] rows of identity i are row[begin[i]] .. row[begin[i + 1] - 1], rising
  const int64_t* row;       // [size]
  int64_t identities;
};

struct RankQueries {
  const int32_t* identity;     // [n]
  const int32_t* drop_camera;  // [n] camera whose rows are removed, negative: none
  bool own_only;               // of the query's own identity only
  bool per_identity;           // first hit among identities (each at its nearest row) instead of among rows
  int64_t limit;               // first hits beyond this need not be told apart
};

struct RankResult {
  double* ap;      // [n] mean over positives of k / rank_k; NaN without a kept positive
  double* inp;     // [n] positives / rank of the last; NaN likewise
  int64_t* first;  // [n] position of the first hit from 1, 0 without a kept positive, -1 where the row holds a NaN
};

// A key of column c is scale[c] * x + bias[c], or x itself where both are null: products need no pass of their own.
template <class T>
struct RankKeys {
  const T* x;  // [n, size]
  const T *scale, *bias;
};

// Queries [q0, q1). Smaller keys are nearer.
template <class T>
void rank_rows(RankKeys<T> keys, RankGallery gallery, RankQueries queries, int64_t q0, int64_t q1, RankResult out);

// Several galleries, each a subset of one, at most kTrials of them: bit t of member[c] says that trial t has column c. Every
// trial's results are those of its own columns alone, ties by lower column, at out[q * trials + t].
constexpr int64_t kTrials = 16;

struct RankTrials {
  int64_t trials;
  const int32_t* member;  // [size]
};

template <class T>
void rank_trial_rows(RankKeys<T> keys, RankGallery gallery, RankTrials trials, RankQueries queries, int64_t q0, int64_t q1,
                     RankResult out);

// histogram [p, kTrials] = columns of every trial that have each of the places 0 .. p - 1.
VIFAST_DECLARE(rank_trial_histogram, (const int32_t* place, const int32_t* member, int64_t n, int64_t p, int64_t* histogram))

// The same for a gallery whose rows are spread over processes, each with `size` of them from number `first` on. Positives are
// numbers of rows of the whole gallery: those of query q are row[begin[q]] .. row[begin[q + 1] - 1], rising. Processes add up
// what the first function writes to `value`, then what the second writes to `count`: a rank is one plus that sum.
struct RankSlots {
  const int64_t* begin;  // [n + 1]
  const int64_t* row;    // [begin[n]]
};

// In place of products, `x` [n, size], their keys, NaN where dropped; value [begin[n]] of the positives: NaN where dropped, 0
// where held elsewhere. bad[q] = whether a key is NaN before any is dropped.
template <class T>
void rank_shard_keys(T* x, const T* scale, const T* bias, RankGallery part, int64_t first, RankQueries queries, RankSlots slots,
                     int64_t q0, int64_t q1, T* value, bool* bad);

// count [begin[n]] = rows of this process ahead of each positive, 0 for those whose value is NaN.
template <class T>
void rank_shard_count(const T* x, int64_t size, int64_t first, RankSlots slots, int64_t q0, int64_t q1, const T* value,
                      int64_t* count);

// found [n, limit] = distinct identities with a row of this process ahead of (value[q], row[q]), -1 where there are fewer;
// row[q] < 0: not asked for.
template <class T>
void rank_shard_identities(const T* x, RankGallery part, int64_t first, int64_t q0, int64_t q1, const T* value,
                           const int64_t* row, int64_t limit, int32_t* found);

// From ranks (any order, from 1; 0: dropped) of one query's positives; sorts them in place.
void rank_summary(int64_t* ranks, int64_t n, double* ap, double* inp);

// Positives from which a binary search of every column beats comparing it with each of them.
int64_t rank_bucket_from();

// What a row costs depends on the instruction set; the numbers do not. T is float or double.

// out = keys of a row, NaN where the camera is dropped; *bad = whether a key is NaN.
#define VIFAST_RANK_DECLARE(T)                                                                                                 \
  VIFAST_DECLARE(rank_mask_row,                                                                                                \
                 (const T* row, const T* scale, const T* bias, int64_t n, const int32_t* camera, int32_t drop_camera, T* out,  \
                  bool* bad))                                                                                                  \
  /* count[k] += rows ahead of (value[k], index[k]), for rising indices. */                                                    \
  VIFAST_DECLARE(rank_count, (const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int64_t* count))       \
  /* The same for positives sorted so that each is ahead of the next; histogram [p + 1] is scratch. */                         \
  VIFAST_DECLARE(rank_bucket,                                                                                                  \
                 (const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int64_t* histogram, int64_t* count)) \
  /* place[c] = positives, sorted likewise, that are ahead of column c; p for a dropped one. */                                \
  VIFAST_DECLARE(rank_places, (const T* row, int64_t n, const T* value, const int64_t* index, int64_t p, int32_t* place))      \
  /* Distinct identities with a row ahead of (value, index), at most limit; seen [identities] must not hold `stamp`. */        \
  /* found [limit], unless null: which. */                                                                                     \
  VIFAST_DECLARE(rank_identities,                                                                                              \
                 (const T* row, int64_t n, T value, int64_t index, const int32_t* identity, int64_t stamp, int64_t* seen,      \
                  int64_t limit, int64_t* count, int32_t* found))

VIFAST_RANK_DECLARE(float)
VIFAST_RANK_DECLARE(double)
#undef VIFAST_RANK_DECLARE

}  // namespace vifast
