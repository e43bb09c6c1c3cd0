// k-reciprocal re-ranking on a GPU: reciprocal sets, which of them join, and Jaccard through the inverted index. The
// arithmetic is that of rerank_inl.h, the order of every sum that of the CPU.
#pragma once
#include <cstdint>

#include "rerank_inl.h"

namespace vifast {

// Pointers to device memory. `stream` is a cudaStream_t of `device`. Each returns what went wrong with the launch, or null;
// nothing waits for the device.

// Reciprocal neighbours of n rows among the first `width` of their lists [n, length]: set [n, width], count [n].
const char* reciprocal_cuda(const int32_t* lists, int64_t n, int64_t length, int64_t width, int32_t* set, int32_t* count,
                            int device, void* stream);

struct JoinJob {
  int64_t rows;                      // sets of the first rows of all
  const int32_t *wide, *wide_count;  // [n, wide_width], [n]
  int64_t wide_width;
  const int32_t *narrow, *narrow_count;  // [n, narrow_width], [n]
  int64_t narrow_width;
  uint8_t* joins;  // [rows, wide_width] 1 where the narrow set of a member joins its wide set; 0 beyond the count
};
const char* joins_cuda(const JoinJob& job, int device, void* stream);

struct JaccardJob {
  int64_t queries, gallery;
  // Entries of query q: entry[begin[q]] .. entry[begin[q + 1] - 1], columns rising.
  const int64_t* begin;
  const int32_t* column;
  const float* value;
  // Entries of the gallery by column: of column c by_column[c] .. by_column[c + 1] - 1, rows rising.
  const int64_t* by_column;
  const int32_t* row;
  const float* held;
  const float* most;  // [queries]
  Blend blend;
  float* dist;  // [queries, gallery] distances, which become the re-ranked ones
};
const char* jaccard_cuda(const JaccardJob& job, int device, void* stream);

}  // namespace vifast
