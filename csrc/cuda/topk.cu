#include "../topk_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace vifast {

namespace {

constexpr int kThreads = kTopkBlock, kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

__device__ float widened(__half x) { return __half2float(x); }
__device__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float widened(float x) { return x; }
__device__ double widened(double x) { return x; }

// Sum of a function of the columns over a warp, in the order of score_inl.h; in lane 0.
template <class Term>
__device__ double lanes_sum(int64_t d, Term term) {
  double sum = 0;
  for (int64_t c = threadIdx.x % 32; c < d; c += 32) sum = term(c, sum);
  for (int half = 16; half > 0; half /= 2) sum += __shfl_down_sync(kAll, sum, half);
  return sum;
}

template <class Q, class R>
__device__ double exact_key(Metric metric, const Q* query, const R* row, int64_t d) {
  if (metric == Metric::sqeuclidean) {
    return lanes_sum(d, [=](int64_t c, double sum) { return sqdist_step(query[c], static_cast<Q>(widened(row[c])), sum); });
  }
  const double dot = lanes_sum(d, [=](int64_t c, double sum) { return dot_step(query[c], static_cast<Q>(widened(row[c])), sum); });
  if (metric == Metric::dot) return -dot;
  const double sq_q = lanes_sum(d, [=](int64_t c, double sum) { return dot_step(query[c], query[c], sum); });
  const double sq_r = lanes_sum(d, [=](int64_t c, double sum) {
    const Q x = static_cast<Q>(widened(row[c]));
    return dot_step(x, x, sum);
  });
  return cosine_key(dot, sq_q, sq_r);
}

__device__ bool nearer(double a, int64_t i, double b, int64_t j) { return a != b ? a < b : i < j; }

// Candidates of this block's query, in shared memory.
struct Candidates {
  double* key;
  int64_t* index;
  int count, settled;  // the same in every thread
};

// All candidates exact, the best k of them in order. Every thread of the block comes here.
template <class Q, class R>
__device__ void settle(const TopkJob& job, Candidates& own) {
  __syncthreads();
  const Q* query = static_cast<const Q*>(job.query) + blockIdx.x * job.d;
  const R* gallery = static_cast<const R*>(job.gallery);
  for (int i = own.settled + threadIdx.x / 32; i < own.count; i += kWarps) {
    const double key = exact_key(job.error.metric, query, gallery + own.index[i] * job.d, job.d);
    if (threadIdx.x % 32 == 0) own.key[i] = key;
  }
  int size = 1;
  while (size < own.count) size *= 2;
  for (int i = own.count + threadIdx.x; i < size; i += kThreads) {
    own.key[i] = INFINITY;
    own.index[i] = INT64_MAX;
  }
  for (int width = 2; width <= size; width *= 2) {  // bitonic
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += kThreads) {
        const int j = i ^ step;
        if (j < i) continue;
        const bool rising = (i & width) == 0;
        if (nearer(own.key[j], own.index[j], own.key[i], own.index[i]) == rising) {
          const double key = own.key[i];
          const int64_t index = own.index[i];
          own.key[i] = own.key[j];
          own.index[i] = own.index[j];
          own.key[j] = key;
          own.index[j] = index;
        }
      }
    }
  }
  __syncthreads();
  own.count = own.settled = min(own.count, static_cast<int>(job.k));
}

// Two blocks a multiprocessor at least: left to itself the compiler makes room for more, and spills.
template <class Q, class R>
__global__ void __launch_bounds__(kThreads, 2) topk_kernel(TopkJob job, bool last) {
  extern __shared__ double shared[];
  __shared__ int found[kWarps];
  const int64_t q = blockIdx.x;
  Candidates own{shared, reinterpret_cast<int64_t*>(shared + job.room), job.count[q], job.settled[q]};
  for (int i = threadIdx.x; i < own.count; i += kThreads) {
    own.key[i] = job.key[q * job.room + i];
    own.index[i] = job.index[q * job.room + i];
  }
  __syncthreads();
  const Metric metric = job.error.metric;
  const double norm_q = job.cols > 0 ? job.query_norm[q] : 0, lost_q = job.cols > 0 ? job.query_lost[q] : 0;
  const double offset = metric == Metric::sqeuclidean ? norm_q * norm_q : metric == Metric::cosine ? 1.0 : 0.0;
  const bool bounded = norm_q <= kMostNorm;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  for (int64_t start = 0; start < job.cols; start += kThreads) {
    const int64_t c = start + threadIdx.x;
    double lower = INFINITY;
    if (c < job.cols && (job.exclude == nullptr || job.exclude[q * job.cols + c] == 0)) {
      const double n = job.norm[c];
      const bool usable = bounded && n <= kMostNorm && (metric != Metric::cosine || n >= kLeastNorm);
      const double base = metric == Metric::sqeuclidean ? n * n : 0.0;
      const double scale = metric == Metric::cosine ? 1 / n : metric == Metric::dot ? 1.0 : 2.0;
      const double key = offset + (base - scale * static_cast<double>(job.tile[q * job.cols + c]));
      const double share = metric == Metric::cosine ? job.lost[c] / n : job.lost[c];
      lower = key - job.error(norm_q, n) - job.error.rounding(norm_q, lost_q, n, share);
      if (!usable || lower - lower != 0) lower = -INFINITY;
    }
    // Twice where there is no room for what was found: what the first look kept may be too far after settling.
    for (bool again = true; again;) {
      const double worst = own.settled == job.k ? own.key[job.k - 1] : INFINITY;
      const bool hit = lower <= worst && lower < INFINITY;
      const unsigned hits = __ballot_sync(kAll, hit);
      if (lane == 0) found[warp] = __popc(hits);
      __syncthreads();
      int before = own.count, total = 0;
      for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? found[w] : 0;
        total += found[w];
      }
      __syncthreads();  // `found` has been read
      again = own.count + total > job.room;
      if (again) {
        settle<Q, R>(job, own);
      } else {
        if (hit) own.index[before + __popc(hits & ((1u << lane) - 1))] = job.first + c;
        own.count += total;
      }
    }
  }
  if (last) settle<Q, R>(job, own);
  __syncthreads();
  for (int i = threadIdx.x; i < own.count; i += kThreads) {
    if (i < own.settled) job.key[q * job.room + i] = own.key[i];
    job.index[q * job.room + i] = own.index[i];
  }
  if (threadIdx.x == 0) {
    job.count[q] = own.count;
    job.settled[q] = own.settled;
  }
}

template <class Q, class R>
cudaError_t launch(const TopkJob& job, bool last, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(job.room) * (sizeof(double) + sizeof(int64_t));
  const cudaError_t status = cudaFuncSetAttribute(topk_kernel<Q, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) return status;
  topk_kernel<Q, R><<<static_cast<unsigned>(job.n), kThreads, bytes, stream>>>(job, last);
  return cudaGetLastError();
}

const char* run(const TopkJob& job, RowType type, bool last, int device, void* stream) {
  if (job.n == 0) return nullptr;
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    const auto at = static_cast<cudaStream_t>(stream);
    switch (type) {
      case RowType::float32: status = launch<float, float>(job, last, at); break;
      case RowType::float64: status = launch<double, double>(job, last, at); break;
      case RowType::float16: status = launch<float, __half>(job, last, at); break;
      case RowType::bfloat16: status = launch<float, __nv_bfloat16>(job, last, at); break;
    }
    cudaSetDevice(before);
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace

const char* topk_fold_cuda(const TopkJob& job, RowType type, int device, void* stream) { return run(job, type, false, device, stream); }
const char* topk_finish_cuda(const TopkJob& job, RowType type, int device, void* stream) { return run(job, type, true, device, stream); }

}  // namespace vifast
