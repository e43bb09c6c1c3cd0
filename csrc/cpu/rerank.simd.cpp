#include "../rerank.h"

#include <cmath>
#include <cstring>

namespace vifast::VIFAST_ISA {

namespace {

template <bool each>
void next(const float* x, const float* worst, int64_t start, int64_t n, int64_t* block, uint8_t* hit) {
  for (; start < n; start += kNearestStep) {
    const int64_t width = start + kNearestStep < n ? kNearestStep : n - start;
    const float *v = x + start, *w = worst + (each ? start : 0);
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t c = 0; c < width; ++c) any |= v[c] < w[each ? c : 0];
    if (!any) continue;
    std::memset(hit, 0, kNearestStep);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) hit[c] = v[c] < w[each ? c : 0];
    break;
  }
  *block = start;
}

}  // namespace

void nearest_next(const float* x, const float* worst, bool each, int64_t start, int64_t n, int64_t* block, uint8_t* hit) {
  each ? next<true>(x, worst, start, n, block, hit) : next<false>(x, worst, start, n, block, hit);
}

void nearest_most(const float* x, bool each, int64_t n, float* most, bool* finite) {
  int32_t bad = 0;
  if (each) {
#pragma omp simd reduction(| : bad)
    for (int64_t c = 0; c < n; ++c) {
      most[c] = x[c] > most[c] ? x[c] : most[c];
      bad |= !(x[c] - x[c] == 0);
    }
  } else {
    float best = *most;
#pragma omp simd reduction(| : bad) reduction(max : best)
    for (int64_t c = 0; c < n; ++c) {
      best = x[c] > best ? x[c] : best;
      bad |= !(x[c] - x[c] == 0);
    }
    *most = best;
  }
  if (bad) *finite = false;
}

void tile_distances(const float* tile, int64_t r0, int64_t r1, int64_t cols, TileDistance how, const float* row_sq,
                    const float* col_sq, float* out, int64_t stride, uint8_t* close, float* most) {
  // The distance of a product p: base - scale p, of unit rows or not.
  const bool cosine = how.metric == Metric::cosine;
  const float scale = cosine ? 1.0f : 2.0f, weight = cosine ? 0.0f : 1.0f;
  for (int64_t r = r0; r < r1; ++r) {
    const float* row = tile + r * cols;
    const float offset = cosine ? 1.0f : row_sq[r];
    float best = 0;
    if (out) {
      float* line = out + r * stride;
      int32_t any = 0;
#pragma omp simd reduction(max : best) reduction(| : any)
      for (int64_t c = 0; c < cols; ++c) {
        const float base = offset + weight * col_sq[c], d = base - scale * row[c];
        best = d > best ? d : best;
        any |= d < kClose * base;
        line[c] = d > 0 ? d : 0.0f;
      }
      close[r] = any != 0;
    } else {
#pragma omp simd reduction(max : best)
      for (int64_t c = 0; c < cols; ++c) {
        const float d = (offset + weight * col_sq[c]) - scale * row[c];
        best = d > best ? d : best;
      }
    }
    if (how.root) best = __builtin_sqrtf(best);
    if (best > most[r]) most[r] = best;
  }
}

// Without a shared column J is 1, and its part the weight itself, which is rounded already. Products go through memory before
// the sum, so that none is fused into it.
void blend_row(float* dist, int64_t n, float most, Blend blend) {
  for (int64_t start = 0; start < n; start += kTile) {
    float part[kTile];
    const int64_t count = start + kTile < n ? kTile : n - start;
#pragma omp simd
    for (int64_t g = 0; g < count; ++g) part[g] = blend.original * (most > 0 ? dist[start + g] / most : 0.0f);
#pragma omp simd
    for (int64_t g = 0; g < count; ++g) dist[start + g] = blend.jaccard + part[g];
  }
}

void flip_tile(const float* tile, int64_t rows, int64_t cols, int64_t c0, int64_t c1, float* out) {
  constexpr int64_t kSide = 16;
  for (int64_t c = c0; c < c1; c += kSide) {
    const int64_t c_end = c + kSide < c1 ? c + kSide : c1;
    for (int64_t r = 0; r < rows; r += kSide) {
      const int64_t r_end = r + kSide < rows ? r + kSide : rows;
      for (int64_t j = c; j < c_end; ++j) {
        for (int64_t i = r; i < r_end; ++i) out[j * rows + i] = tile[i * cols + j];
      }
    }
  }
}

void panel_norms(const float* panels, int64_t d, int64_t n, int64_t p0, int64_t p1, double* norm) {
  for (int64_t p = p0; p < p1; ++p) {
    double sum[kPanel] = {};
    const float* x = panels + p * kPanel * d;
    for (int64_t k = 0; k < d; ++k) {
#pragma omp simd
      for (int64_t r = 0; r < kPanel; ++r)
        sum[r] += static_cast<double>(x[k * kPanel + r]) * static_cast<double>(x[k * kPanel + r]);
    }
    for (int64_t r = 0; r < kPanel && p * kPanel + r < n; ++r) norm[p * kPanel + r] = std::sqrt(sum[r]);
  }
}

}  // namespace vifast::VIFAST_ISA
