#include "../product.h"

#include <cstring>

namespace vifast::VIFAST_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8, kWidth = 3;  // 24 of 32 registers are sums
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 4, kWidth = 1;  // 8 of 16
#else
constexpr int kLanes = 4, kRows = 2, kWidth = 1;  // 8 of 16
#endif
constexpr int kVectors = kPanel / kLanes;  // of a panel
// Panels of a block: its operands for kDepth columns and its products stay in a second-level cache.
constexpr int64_t kBlockRows = 16, kBlockCols = 33;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
#if defined(__clang__)
#define VIFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Index __attribute__((vector_size(4 * kLanes)));
#define VIFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif

template <class V>
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V>
inline void store(float* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

// A square of kLanes x kLanes, by exchanging 1 x 1, 2 x 2, ... blocks of neighbours.
inline void transpose(Vec (&v)[kLanes]) {
#if defined(__AVX512F__)
  auto exchange = [&v](int i, int j, int step) {
    const Vec a = v[i], b = v[j];
    v[i] = step == 1   ? VIFAST_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
           : step == 2 ? VIFAST_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
           : step == 4 ? VIFAST_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
                       : VIFAST_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    v[j] = step == 1   ? VIFAST_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
           : step == 2 ? VIFAST_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
           : step == 4 ? VIFAST_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
                       : VIFAST_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
#elif defined(__AVX2__)
  auto exchange = [&v](int i, int j, int step) {
    const Vec a = v[i], b = v[j];
    v[i] = step == 1   ? VIFAST_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
           : step == 2 ? VIFAST_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
                       : VIFAST_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    v[j] = step == 1   ? VIFAST_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
           : step == 2 ? VIFAST_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
                       : VIFAST_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  };
#else
  auto exchange = [&v](int i, int j, int step) {
    const Vec a = v[i], b = v[j];
    v[i] = step == 1 ? VIFAST_SHUFFLE(a, b, 0, 4, 2, 6) : VIFAST_SHUFFLE(a, b, 0, 1, 4, 5);
    v[j] = step == 1 ? VIFAST_SHUFFLE(a, b, 1, 5, 3, 7) : VIFAST_SHUFFLE(a, b, 2, 3, 6, 7);
  };
#endif
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & step) == 0 && i + step < kLanes) exchange(i, i + step, step);
    }
  }
}

// Columns [k0, k1) of one panel; sum[r] += squares.
void pack_run(const float* x, int64_t rows, int64_t stride, const float* mean, int64_t k0, int64_t k1, float* out, float* sum) {
  int64_t k = k0;
  if (rows == kPanel) {
    for (int64_t r = 0; r < kPanel; r += kLanes) {
      Vec squares{};
      for (k = k0; k + kLanes <= k1; k += kLanes) {
        Vec v[kLanes];
        const Vec origin = mean ? load<Vec>(mean + k) : Vec{};
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) v[i] = load<Vec>(x + (r + i) * stride + k) - origin;
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          store(out + (k + i) * kPanel + r, v[i]);
          squares += v[i] * v[i];
        }
      }
      for (int i = 0; i < kLanes; ++i) sum[r + i] += squares[i];
    }
  }
  for (; k < k1; ++k) {
    for (int64_t r = 0; r < kPanel; ++r) {
      const float v = r < rows ? x[r * stride + k] - (mean ? mean[k] : 0.0f) : 0.0f;
      out[k * kPanel + r] = v;
      sum[r] += v * v;
    }
  }
}

// out[0 .. kRows, 0 .. P * kPanel] += a b^T over `depth` columns; a begins at the first of its rows within a panel.
template <int P>
void micro(const float* a, const float* b, int64_t b_stride, int64_t depth, float* out, int64_t stride, bool first, int64_t rows,
           int64_t cols) {
  constexpr int V = P * kVectors;
  Vec acc[kRows][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[V];
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v) right[v] = load<Vec>(b + v / kVectors * b_stride + k * kPanel + v % kVectors * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec left = a[k * kPanel + r] - Vec{};
#pragma GCC unroll 12
      for (int v = 0; v < V; ++v) acc[r][v] += left * right[v];
    }
  }
  if (rows >= kRows && cols >= P * kPanel) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
      for (int v = 0; v < V; ++v) {
        float* p = out + r * stride + v * kLanes;
        store(p, first ? acc[r][v] : load<Vec>(p) + acc[r][v]);
      }
    }
    return;
  }
  for (int r = 0; r < kRows && r < rows; ++r) {
    float line[P * kPanel];
    std::memcpy(line, acc[r], sizeof(line));
    for (int64_t c = 0; c < cols && c < P * kPanel; ++c) out[r * stride + c] = first ? line[c] : out[r * stride + c] + line[c];
  }
}

template <int P>
void unit(const float* a, const float* b, int64_t d, int64_t depth, float* out, int64_t stride, bool first, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < kPanel && r < rows; r += kRows) {
    micro<P>(a + r, b, d * kPanel, depth, out + r * stride, stride, first, rows - r, cols);
  }
}

void unit_of(int64_t panels, const float* a, const float* b, int64_t d, int64_t depth, float* out, int64_t stride, bool first, int64_t rows,
             int64_t cols) {
#if defined(__AVX512F__)
  if (panels == 3) return unit<3>(a, b, d, depth, out, stride, first, rows, cols);
  if (panels == 2) return unit<2>(a, b, d, depth, out, stride, first, rows, cols);
#endif
  (void)panels;
  unit<1>(a, b, d, depth, out, stride, first, rows, cols);
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls body(i, j, panels) for the units of a block: row panel i with up to kWidth column panels from j. Returns the
// number of kPanel x kPanel products passed; only units that begin within [lo, hi) of that count are called.
template <class Body>
int64_t each_unit(int64_t i0, int64_t i1, int64_t j0, int64_t j1, bool upper, int64_t count, int64_t lo, int64_t hi, Body body) {
  for (int64_t j = j0; j < j1; j += kWidth) {
    const int64_t j_end = least(j + kWidth, j1);
    for (int64_t i = i0; i < (upper ? least(i1, j_end) : i1); ++i) {
      const int64_t start = upper ? most(i, j) : j;
      if (lo <= count && count < hi) body(i, start, j_end - start);
      count += j_end - start;
    }
  }
  return count;
}

}  // namespace

void pack_panels(const float* x, int64_t stride, int64_t n, int64_t d, const float* mean, int64_t p0, int64_t p1, float* panels, float* sq) {
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t first = p * kPanel, rows = least(kPanel, n - first);
    double total[kPanel] = {};
    for (int64_t k = 0; k < d; k += kDepth) {
      float sum[kPanel] = {};
      pack_run(x + first * stride, rows, stride, mean, k, least(k + kDepth, d), panels + first * d, sum);
      for (int64_t r = 0; r < kPanel; ++r) total[r] += sum[r];
    }
    for (int64_t r = 0; r < rows; ++r) sq[first + r] = static_cast<float>(total[r]);
  }
}

void panel_products(const float* a, const float* b, int64_t d, int64_t rows, int64_t cols, bool upper, int64_t share, int64_t shares,
                    float* out, int64_t stride) {
  const int64_t row_panels = (rows + kPanel - 1) / kPanel, col_panels = (cols + kPanel - 1) / kPanel;
  auto each_block = [&](auto body) {
    for (int64_t j = 0; j < col_panels; j += kBlockCols) {
      for (int64_t i = 0; i < row_panels; i += kBlockRows) body(i, least(i + kBlockRows, row_panels), j, least(j + kBlockCols, col_panels));
    }
  };
  int64_t total = 0;
  each_block([&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    total = each_unit(i0, i1, j0, j1, upper, total, 0, 0, [](int64_t, int64_t, int64_t) {});
  });
  const int64_t lo = total * share / shares, hi = total * (share + 1) / shares;
  int64_t count = 0;
  each_block([&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const int64_t before = count;
    for (int64_t k = 0; k < d || k == 0; k += kDepth) {
      const int64_t depth = least(kDepth, d - k);
      count = each_unit(i0, i1, j0, j1, upper, before, lo, hi, [&](int64_t i, int64_t j, int64_t panels) {
        unit_of(panels, a + (i * d + k) * kPanel, b + (j * d + k) * kPanel, d, depth, out + i * kPanel * stride + j * kPanel, stride, k == 0,
                rows - i * kPanel, cols - j * kPanel);
      });
    }
  });
}

void add_runs(const float* sums, int64_t runs, int64_t n, float* out) {
  for (int64_t r = 0; r < n; ++r) {
    const int64_t from = r / kPanel * kPanel;
    float* row = out + r * n;
    std::memcpy(row + from, sums + r * n + from, static_cast<size_t>(n - from) * sizeof(float));
    for (int64_t run = 1; run < runs; ++run) {
      const float* next = sums + (run * n + r) * n;
#pragma omp simd
      for (int64_t c = from; c < n; ++c) row[c] += next[c];
    }
  }
}

void mirror_upper(float* tile, int64_t n, int64_t r0, int64_t r1) {
  // Through a buffer of kPanel columns: rows of a large tile lie a multiple of 4096 bytes apart and would share one cache set.
  float block[kPanel][kPanel];
  for (int64_t c0 = 0; c0 < r1; c0 += kPanel) {
    const int64_t cols = least(kPanel, n - c0);
    for (int64_t r = most(r0, c0); r < r1; r += kPanel) {
      const int64_t rows = least(kPanel, r1 - r);
      for (int64_t c = 0; c < cols; ++c) {
        for (int64_t i = most(0, c0 + c + 1 - r); i < rows; ++i) block[i][c] = tile[(c0 + c) * n + r + i];
      }
      for (int64_t i = 0; i < rows; ++i) std::memcpy(tile + (r + i) * n + c0, block[i], sizeof(float) * static_cast<size_t>(least(cols, r + i - c0)));
    }
  }
}

}  // namespace vifast::VIFAST_ISA
