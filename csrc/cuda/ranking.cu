#include "../ranking_cuda.h"

#include "../ranking_inl.h"

namespace vifast {

namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 16;  // positives counted in one pass over the row: their counters stay in registers

// Sum over the block, in every thread. Integers: any order gives the same number.
__device__ int64_t block_sum(int64_t value, int64_t* shared) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  int64_t sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += shared[w];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) rank_kernel(const T* keys, RankJob job) {
  __shared__ int64_t shared[kThreads / 32];
  const int64_t q = blockIdx.x;
  const T* row = keys + q * job.size;
  const int32_t own = job.query_identity[q], drop = job.drop_camera[q];
  const int64_t* positive = job.row + job.begin[own];
  const int64_t positives = job.slot[q + 1] - job.slot[q];
  int64_t* rank = job.rank + job.slot[q];
  auto is_dropped = [&](int64_t j) { return dropped(job.gallery_camera[j], job.gallery_identity[j], drop, own, job.own_only); };

  bool nan = false;
  for (int64_t j = threadIdx.x; j < job.size; j += kThreads) nan |= row[j] != row[j];
  if (__syncthreads_or(nan)) {
    if (threadIdx.x == 0) job.first[q] = -1;
    return;
  }

  // Every thread follows the same positives, so best and its rank need no exchange.
  int64_t best_rank = 0, best_index = -1;
  for (int64_t start = 0; start < positives; start += kTogether) {
    T value[kTogether];
    int64_t index[kTogether];
    int32_t count[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      index[k] = positive[start + k < positives ? start + k : start];
      value[k] = row[index[k]];
      count[k] = 0;
    }
    for (int64_t j = threadIdx.x; j < job.size; j += kThreads) {
      if (is_dropped(j)) continue;
      const T x = row[j];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) count[k] += ahead(x, j, value[k], index[k]);
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const int64_t before = block_sum(count[k], shared);
      if (start + k >= positives) continue;
      const int64_t r = is_dropped(index[k]) ? 0 : before + 1;
      if (threadIdx.x == 0) rank[start + k] = r;
      if (r > 0 && (best_rank == 0 || r < best_rank)) {
        best_rank = r;
        best_index = index[k];
      }
    }
  }
  if (best_rank <= 1 || job.seen == nullptr) {
    if (threadIdx.x == 0) job.first[q] = best_rank;
    return;
  }

  // Identities met before the best positive: bits, so that the order in which threads set them does not matter.
  uint32_t* seen = job.seen + q * job.words;
  const T best = row[best_index];
  int64_t fresh = 0;
  for (int64_t j = threadIdx.x; j < job.size; j += kThreads) {
    if (is_dropped(j) || !ahead(row[j], j, best, best_index)) continue;
    const int32_t identity = job.gallery_identity[j];
    const uint32_t bit = 1u << (identity % 32);
    fresh += (atomicOr(seen + identity / 32, bit) & bit) == 0;
  }
  const int64_t others = block_sum(fresh, shared);
  if (threadIdx.x == 0) job.first[q] = others + 1;
}

}  // namespace

template <class T>
const char* rank_count_cuda(const T* keys, const RankJob& job, int device, void* stream) {
  if (job.n == 0) return nullptr;
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    rank_kernel<T><<<static_cast<unsigned>(job.n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(keys, job);
    status = cudaGetLastError();
    cudaSetDevice(before);
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

template const char* rank_count_cuda(const float*, const RankJob&, int, void*);
template const char* rank_count_cuda(const double*, const RankJob&, int, void*);

}  // namespace vifast
