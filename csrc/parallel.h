// parallel_for without linking an OpenMP runtime. If the process already holds libgomp (torch brings one), its team
// runs the chunks: those threads still spin after a matrix product, and a second set would fight them for the cores.
// Otherwise std::thread. Chunks are a function of n, grain and the thread count only, so results cannot depend on timing.
#pragma once
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace vifast {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using GompThread = int (*)();

struct Gomp {
  GompParallel parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  GompThread thread = reinterpret_cast<GompThread>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
  GompThread team = reinterpret_cast<GompThread>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  bool usable() const { return parallel && thread && team; }
};

inline const Gomp& gomp() {
  static const Gomp g;
  return g;
}

// Calls body(begin, end) on disjoint chunks that cover 0..n, at least `grain` items each, on at most `threads` threads.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int threads, Body body) {
  if (n <= 0) return;
  const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(threads, n / std::max<int64_t>(grain, 1)));
  if (chunks == 1) {
    body(int64_t{0}, n);
    return;
  }
  struct Job {
    Body& body;
    int64_t n, chunks;
    void run(int64_t c) { body(n * c / chunks, n * (c + 1) / chunks); }
  } job{body, n, chunks};
  if (gomp().usable()) {
    auto member = [](void* arg) {
      Job& j = *static_cast<Job*>(arg);
      // The runtime may grant fewer threads than asked for: each takes every team-th chunk.
      for (int64_t c = gomp().thread(); c < j.chunks; c += gomp().team()) j.run(c);
    };
    gomp().parallel(member, &job, static_cast<unsigned>(chunks), 0);
    return;
  }
  std::vector<std::thread> others;
  others.reserve(chunks - 1);
  for (int64_t c = 1; c < chunks; ++c) others.emplace_back([&job, c] { job.run(c); });
  job.run(0);
  for (std::thread& t : others) t.join();
}

}  // namespace vifast
