#include "../packed_rows.h"

#include <algorithm>
#include <new>

#include "../distance.h"
#include "../parallel.h"

namespace vifast {

namespace {

constexpr int64_t kGrain = 1 << 15;       // elements below which a second thread does not pay
constexpr int64_t kShareGrain = 1 << 18;  // multiplications likewise

}  // namespace

std::unique_ptr<float, FreeAligned> aligned(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
  std::unique_ptr<float, FreeAligned> memory(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
  if (!memory) throw std::bad_alloc();
  return memory;
}

PackedRows::PackedRows(const float* x, int64_t n, int64_t d, const float* mean, float* sq, int threads) : d_(d) {
  const int64_t panels = (n + kPanel - 1) / kPanel;
  panels_ = aligned(panels * kPanel * d);
  parallel_for(panels, std::max<int64_t>(1, kGrain / (kPanel * std::max<int64_t>(d, 1))), threads,
               [&](int64_t p0, int64_t p1) { VIFAST_DISPATCH(pack_panels, x, d, n, d, mean, p0, p1, panels_.get(), sq); });
}

void products(const PackedRows& a, const PackedRows& b, Tile t, bool upper, float* out, int64_t stride, int threads) {
  const int64_t d = a.columns(), work = t.rows * t.cols * d / (upper ? 2 : 1);
  const int64_t shares = std::max<int64_t>(1, std::min<int64_t>(threads, work / kShareGrain));
  parallel_for(shares, 1, threads, [&](int64_t s0, int64_t s1) {
    for (int64_t s = s0; s < s1; ++s) {
      VIFAST_DISPATCH(panel_products, a.from(t.row0), b.from(t.col0), d, t.rows, t.cols, upper, s, shares, out, stride);
    }
  });
}

void small_products(const float* x, int64_t n, int64_t d, const float* mean, float* out, float* sq, int threads) {
  const int64_t panels = (n + kPanel - 1) / kPanel, runs = std::max<int64_t>(1, (d + kDepth - 1) / kDepth);
  const int64_t shares = std::max<int64_t>(1, std::min<int64_t>({threads, runs, n * n * d / 2 / kShareGrain}));
  const int64_t packed = panels * kPanel * kDepth;
  const auto sums = aligned(runs * n * n), norms = aligned(runs * n), buffers = aligned(shares * packed);
  parallel_for(shares, 1, threads, [&](int64_t s0, int64_t s1) {
    for (int64_t s = s0; s < s1; ++s) {
      float* own = buffers.get() + s * packed;
      for (int64_t run = runs * s / shares; run < runs * (s + 1) / shares; ++run) {
        const int64_t k = run * kDepth, depth = std::min(kDepth, d - k);
        VIFAST_DISPATCH(pack_panels, x + k, d, n, depth, mean ? mean + k : nullptr, 0, panels, own, norms.get() + run * n);
        VIFAST_DISPATCH(panel_products, own, own, depth, n, n, true, 0, 1, sums.get() + run * n * n, n);
      }
    }
  });
  for (int64_t i = 0; i < n; ++i) {
    double total = 0;
    for (int64_t run = 0; run < runs; ++run) total += norms.get()[run * n + i];
    sq[i] = static_cast<float>(total);
  }
  VIFAST_DISPATCH(add_runs, sums.get(), runs, n, out);
}

void mirror(float* tile, int64_t n, int threads) {
  parallel_for(n, kTile / 2, threads, [&](int64_t r0, int64_t r1) { VIFAST_DISPATCH(mirror_upper, tile, n, r0, r1); });
}

std::vector<float> common_mean(const float* x, int64_t n, const float* y, int64_t m, int64_t d, int threads) {
  std::vector<float> mean(d, 0.0f);
  const int64_t total = n + m;
  parallel_for(d, std::max<int64_t>(64, kGrain / std::max<int64_t>(1, total)), threads, [&](int64_t c0, int64_t c1) {
    VIFAST_DISPATCH(column_means, x, n, d, total, c0, c1, mean.data());
    if (m > 0) VIFAST_DISPATCH(column_means, y, m, d, total, c0, c1, mean.data());
  });
  return mean;
}

}  // namespace vifast
