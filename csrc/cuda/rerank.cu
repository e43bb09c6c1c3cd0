#include "../rerank_cuda.h"

namespace vifast {

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = 8;           // rows of a block, one a warp
constexpr int kThreads = 256;       // of a query and a chunk of the gallery
constexpr int kChunk = 4096;        // gallery rows whose overlaps are in shared memory
constexpr int kColumns = kThreads;  // columns of a query whose ranges are found together

__global__ void __launch_bounds__(32 * kWarps)
    reciprocal_kernel(const int32_t* lists, int64_t n, int64_t length, int64_t width, int32_t* set, int32_t* count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (i >= n) return;
  int32_t found = 0;
  for (int64_t start = 0; start < width; start += 32) {
    const int64_t k = start + lane;
    const int32_t j = k < width ? lists[i * length + k] : 0;
    const bool mutual = k < width && is_member(lists + j * length, width, static_cast<int32_t>(i));
    const unsigned all = __ballot_sync(kAll, mutual);
    if (mutual) set[i * width + found + __popc(all & ((1u << lane) - 1))] = j;
    found += __popc(all);
  }
  if (lane == 0) count[i] = found;
}

__global__ void __launch_bounds__(32 * kWarps) joins_kernel(JoinJob job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (i >= job.rows) return;
  const int32_t* base = job.wide + i * job.wide_width;
  const int32_t members = job.wide_count[i];
  uint8_t* joins = job.joins + i * job.wide_width;
  for (int64_t k = members + lane; k < job.wide_width; k += 32) joins[k] = 0;
  for (int32_t k = 0; k < members; ++k) {
    const int32_t* set = job.narrow + base[k] * job.narrow_width;
    const int32_t n = job.narrow_count[base[k]];
    int32_t shared = 0;
    for (int32_t start = 0; start < n; start += 32) {
      shared += __popc(__ballot_sync(kAll, start + lane < n && is_member(base, members, set[start + lane])));
    }
    if (lane == 0) joins[k] = enough(shared, n);
  }
}

// First place in rows [begin, end), rising, that holds at least `row`.
__device__ int64_t lower_bound(const int32_t* rows, int64_t begin, int64_t end, int64_t row) {
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (rows[middle] < row) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// A column holds a gallery row once, so within a column every overlap has one thread; columns follow each other in order.
__global__ void __launch_bounds__(kThreads) jaccard_kernel(JaccardJob job) {
  __shared__ float sum[kChunk];
  __shared__ int64_t low[kColumns], high[kColumns];
  __shared__ float weight[kColumns];
  const int64_t q = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * kChunk;
  const int64_t last = first + kChunk < job.gallery ? first + kChunk : job.gallery;
  for (int64_t g = threadIdx.x; g < last - first; g += kThreads) sum[g] = 0;
  for (int64_t start = job.begin[q]; start < job.begin[q + 1]; start += kColumns) {
    const int64_t e = start + threadIdx.x;
    __syncthreads();  // the last ranges have been used
    if (e < job.begin[q + 1]) {
      const int64_t begin = job.by_column[job.column[e]], end = job.by_column[job.column[e] + 1];
      low[threadIdx.x] = lower_bound(job.row, begin, end, first);
      high[threadIdx.x] = lower_bound(job.row, low[threadIdx.x], end, last);
      weight[threadIdx.x] = job.value[e];
    }
    __syncthreads();
    for (int64_t c = 0; c < kColumns && start + c < job.begin[q + 1]; ++c) {
      for (int64_t k = low[c] + threadIdx.x; k < high[c]; k += kThreads) {
        float& t = sum[job.row[k] - first];
        t = overlap<false>(t, weight[c], job.held[k]);
      }
      __syncthreads();
    }
  }
  __syncthreads();
  const float most = job.most[q];
  float* dist = job.dist + q * job.gallery + first;
  for (int64_t g = threadIdx.x; g < last - first; g += kThreads)
    dist[g] = blended<false>(sum[g], share_of(dist[g], most), job.blend);
}

// Calls launch() on a device, and says what went wrong.
template <class Launch>
const char* on_device(int device, Launch launch) {
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    launch();
    status = cudaGetLastError();
    cudaSetDevice(before);
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

unsigned blocks_of(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace

const char* reciprocal_cuda(const int32_t* lists, int64_t n, int64_t length, int64_t width, int32_t* set, int32_t* count,
                            int device, void* stream) {
  if (n == 0) return nullptr;
  return on_device(device, [=] {
    reciprocal_kernel<<<blocks_of(n, kWarps), 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(lists, n, length, width, set,
                                                                                                   count);
  });
}

const char* joins_cuda(const JoinJob& job, int device, void* stream) {
  if (job.rows == 0) return nullptr;
  return on_device(
      device, [&] { joins_kernel<<<blocks_of(job.rows, kWarps), 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(job); });
}

const char* jaccard_cuda(const JaccardJob& job, int device, void* stream) {
  if (job.queries == 0 || job.gallery == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(job.queries), blocks_of(job.gallery, kChunk));
  return on_device(device, [&] { jaccard_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(job); });
}

}  // namespace vifast
