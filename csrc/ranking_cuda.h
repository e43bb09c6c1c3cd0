// Rank counting on a GPU: one block of threads per query, one pass over its row for every 16 positives.
#pragma once
#include <cstdint>

namespace vifast {

// Pointers to device memory. Queries [0, n) of a block of rows; smaller keys are nearer; identities and cameras are codes.
struct RankJob {
  int64_t n, size;                  // queries, gallery rows
  const int32_t* query_identity;    // [n]
  const int32_t* gallery_identity;  // [size]
  const int32_t* drop_camera;       // [n], negative: none
  const int32_t* gallery_camera;    // [size]
  bool own_only;
  const int64_t* begin;             // [identities + 1] rows of identity i are row[begin[i]] .. row[begin[i + 1] - 1], rising
  const int64_t* row;               // [size]
  const int64_t* slot;              // [n + 1] ranks of query q are rank[slot[q]] .. rank[slot[q + 1] - 1]
  int64_t* rank;                    // [slot[n]] rank of every positive from 1, 0 where it is dropped
  int64_t* first;                   // [n] as in csrc/ranking.h
  uint32_t* seen;                   // [n, words] zeros, a bit per identity; null: first hit among rows
  int64_t words;
};

// T is float or double; `stream` is a cudaStream_t of `device`. Returns what went wrong with the launch, or null; nothing
// waits for the device.
template <class T>
const char* rank_count_cuda(const T* keys, const RankJob& job, int device, void* stream);

}  // namespace vifast
