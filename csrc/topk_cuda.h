// Exact search on a GPU: one block of threads per query folds a row of products into its candidates. Products nominate up to a
// proven error, float64 decides, by the arithmetic of score_inl.h, so the answer has the bits of the CPU's.
#pragma once
#include <cstdint>

#include "score_inl.h"

namespace vifast {

constexpr int64_t kTopkBlock = 256;  // threads, columns looked at together, and least room beyond k

// Pointers to device memory. Candidates of query q are key and index [q * room, q * room + count[q]); the first settled[q] are
// exact and in order. `room` is a power of two, at least k + kTopkBlock.
struct TopkJob {
  int64_t n, cols, d;   // queries, columns of the tile, features
  int64_t first;        // gallery row of column 0
  int64_t k, room;
  KeyError error;
  const float* tile;    // [n, cols] products of float32 rows, as exact as query_lost and lost say
  const double *query_norm, *query_lost;  // [n]: see RowNorms in topk.h
  const double *norm, *lost;              // [cols]
  const uint8_t* exclude;                 // [n, cols], nonzero: not wanted; may be null
  const void *query, *gallery;            // [n, d] and [G, d] as given, in C order; half queries as float32
  double* key;
  int64_t* index;
  int32_t *count, *settled;  // [n]
};

// Folds a tile. `stream` is a cudaStream_t of `device`. Returns what went wrong with the launch, or null; nothing waits for the
// device.
const char* topk_fold_cuda(const TopkJob& job, RowType type, int device, void* stream);

// The best k of every query in order, count[q] = settled[q] of them, at the front of its candidates.
const char* topk_finish_cuda(const TopkJob& job, RowType type, int device, void* stream);

}  // namespace vifast
