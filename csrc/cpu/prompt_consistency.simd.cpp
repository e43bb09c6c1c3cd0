#include "../prompt_consistency.h"

#include "lanes-inl.h"

namespace vifast::VIFAST_ISA {

namespace {

constexpr int64_t kRun = 4096;  // elements summed in float32

}  // namespace

void absolute_difference(const float* a, const float* b, int64_t n, double* total) {
  *total = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = begin + kRun < n ? begin + kRun : n;
    Lanes run{};
    for (int64_t i = begin; i < end; i += kLanes) {
      const Lanes d = load(a + i, end - i) - load(b + i, end - i);
      run += d < 0.0f ? -d : d;
    }
    *total += sum(run);
  }
}

void difference_sign(const float* a, const float* b, int64_t n, float scale, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes d = load(a + i, n - i) - load(b + i, n - i);
    store(out + i, d > 0.0f ? all(scale) : (d < 0.0f ? all(-scale) : Lanes{}), n - i);
  }
}

}  // namespace vifast::VIFAST_ISA
