#include "../weighted_sums.h"

#include <cstring>

namespace vifast::VIFAST_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8, kWide = 3;  // 24 of 32 registers are sums
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 4, kWide = 3;  // 12 of 16
#else
constexpr int kLanes = 4, kRows = 4, kWide = 3;  // 12 of 16
#endif
static_assert(kSumsWidth % (kLanes * kWide) == 0);

typedef float Vec __attribute__((vector_size(4 * kLanes)));

// acc[r] += W[r0 + r, j0 .. j0 + depth) x, for the first WIDE registers of columns; rows beyond the last repeat it.
template <int WIDE>
inline void accumulate(Weights w, int64_t last, int64_t r0, int64_t j0, int64_t depth, const float* x, Vec (&acc)[kRows][kWide]) {
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = w.data + (r0 + r < last ? r0 + r : last) * w.row + j0 * w.col;
  for (int64_t j = 0; j < depth; ++j) {
    Vec v[WIDE];
    for (int k = 0; k < WIDE; ++k) std::memcpy(&v[k], x + j * kSumsWidth + k * kLanes, sizeof(Vec));
    for (int r = 0; r < kRows; ++r) {
      const float weight = row[r][j * w.col];
      for (int k = 0; k < WIDE; ++k) acc[r][k] += weight * v[k];
    }
  }
}

}  // namespace

void weighted_sums(Weights w, int64_t n, const float* x, int64_t m, int64_t x_stride, int64_t c0, int64_t c1, bool add, float* out,
                   int64_t stride, float* scratch) {
  constexpr int64_t kStep = kLanes * kWide;
  for (int64_t c = c0; c < c1; c += kSumsWidth) {
    const int64_t cols = c1 - c < kSumsWidth ? c1 - c : kSumsWidth;
    for (int64_t j = 0; j == 0 || j < m; j += kSumsDepth) {
      const int64_t depth = m - j < kSumsDepth ? m - j : kSumsDepth;
      const float* panel = scratch == nullptr ? x + j * kSumsWidth : scratch;
      for (int64_t k = 0; k < depth && scratch != nullptr; ++k) {
        std::memcpy(scratch + k * kSumsWidth, x + (j + k) * x_stride + c, cols * sizeof(float));
        std::memset(scratch + k * kSumsWidth + cols, 0, (kSumsWidth - cols) * sizeof(float));
      }
      const bool keep = add || j > 0;
      for (int64_t r0 = 0; r0 < n; r0 += kRows) {
        for (int64_t part = 0; part < cols; part += kStep) {
          const int64_t width = cols - part < kStep ? cols - part : kStep;
          float line[kRows][kStep];
          Vec acc[kRows][kWide] = {};
          for (int r = 0; keep && r < kRows && r0 + r < n; ++r) {
            std::memset(line[r], 0, sizeof(line[r]));
            std::memcpy(line[r], out + (r0 + r) * stride + c + part, width * sizeof(float));
            std::memcpy(acc[r], line[r], sizeof(acc[r]));
          }
          if (width <= kLanes) {
            accumulate<1>(w, n - 1, r0, j, depth, panel + part, acc);
          } else if (width <= 2 * kLanes) {
            accumulate<2>(w, n - 1, r0, j, depth, panel + part, acc);
          } else {
            accumulate<kWide>(w, n - 1, r0, j, depth, panel + part, acc);
          }
          for (int r = 0; r < kRows && r0 + r < n; ++r) {
            std::memcpy(line[r], acc[r], sizeof(acc[r]));
            std::memcpy(out + (r0 + r) * stride + c + part, line[r], width * sizeof(float));
          }
        }
      }
    }
  }
}

}  // namespace vifast::VIFAST_ISA
