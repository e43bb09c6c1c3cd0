// The comparisons of rank counting, one copy for host and device: what is nearer, and what a protocol drops.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define VIFAST_HD __host__ __device__ __forceinline__
#else
#define VIFAST_HD inline __attribute__((always_inline))
#endif

namespace vifast {

// Gallery row i at distance x comes before row j at distance v: nearer, or equally near and of lower index. False for NaN.
template <class T>
VIFAST_HD bool ahead(T x, int64_t i, T v, int64_t j) {
  return (x < v) | ((x == v) & (i < j));
}

// Whether a protocol removes a gallery row from the list of a query that drops `drop_camera` (negative: none).
// With own_only it removes that camera's images of the query's own identity and no others.
VIFAST_HD bool dropped(int32_t camera, int32_t identity, int32_t drop_camera, int32_t query_identity, bool own_only) {
  return (drop_camera >= 0) & (camera == drop_camera) & (!own_only | (identity == query_identity));
}

}  // namespace vifast
