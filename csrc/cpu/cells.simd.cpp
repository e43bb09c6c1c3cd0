#include "../cells.h"

#include <cstring>

#include "../philox.h"

namespace vifast::VIFAST_ISA {

namespace {

// Calls body(offset in the image, offset in the row) for each run of `side` pixels of a cell.
template <class Body>
inline void each_run(CellGrid grid, int64_t cell, Body body) {
  const int64_t corner = (cell / grid.across() * grid.width + cell % grid.across()) * grid.side;
  for (int64_t c = 0; c < grid.channels; ++c) {
    for (int64_t y = 0; y < grid.side; ++y) {
      body((c * grid.height + y) * grid.width + corner, (c * grid.side + y) * grid.side);
    }
  }
}

// Calls body(x) for the pixels of a run; the usual one is known when this is compiled, for its loop is as short as a register.
template <class Body>
inline void each_pixel(int64_t side, Body body) {
  if (side == 16) {
#pragma omp simd
    for (int64_t x = 0; x < 16; ++x) body(x);
  } else {
#pragma omp simd
    for (int64_t x = 0; x < side; ++x) body(x);
  }
}

// words[k]: for pixel k of a cell, 16 bits for either part. Four words of a call go to four pixels far from each other.
inline void draw_words(CellDropout drop, uint64_t cell, int64_t d, uint32_t* words) {
  const int64_t quarter = (d + 3) / 4;
  const uint32_t low = static_cast<uint32_t>(cell), high = static_cast<uint32_t>(cell >> 32);
#pragma omp simd
  for (int64_t i = 0; i < quarter; ++i) {
    const Words four = philox({{static_cast<uint32_t>(i), low, high, 0}}, drop.seed_low, drop.seed_high);
    words[i] = four.w[0];
    words[quarter + i] = four.w[1];
    words[2 * quarter + i] = four.w[2];
    words[3 * quarter + i] = four.w[3];
  }
}

}  // namespace

void gather_cells(CellGrid grid, const float* image, const float* second, int64_t begin, int64_t n, float* rows) {
  for (int64_t k = 0; k < n; ++k, rows += grid.size()) {
    each_run(grid, begin + k, [&](int64_t from, int64_t to) {
      if (second == nullptr) {
        each_pixel(grid.side, [&](int64_t x) { rows[to + x] = image[from + x]; });
      } else {
        each_pixel(grid.side, [&](int64_t x) { rows[to + x] = image[from + x] + second[from + x]; });
      }
    });
  }
}

void scatter_cells(CellGrid grid, const float* rows, int64_t begin, int64_t n, float* to, const float* image, float* sum) {
  for (int64_t k = 0; k < n; ++k, rows += grid.size()) {
    each_run(grid, begin + k, [&](int64_t at, int64_t from) {
      if (sum != nullptr) each_pixel(grid.side, [&](int64_t x) { sum[at + x] = image[at + x] + rows[from + x]; });
      each_pixel(grid.side, [&](int64_t x) { to[at + x] = rows[from + x]; });
    });
  }
}

void drop_cells(CellDropout drop, int64_t cell, int64_t n, int64_t d, const float* a, const float* bias_a, const float* b,
                const float* bias_b, uint32_t* words, float* rows) {
  if (!drop.draws) std::memset(words, 0xff, d * sizeof(*words));
  for (int64_t k = 0; k < n; ++k) {
    if (drop.draws) draw_words(drop, cell + k, d, words);
    const int64_t at = k * d;
    if (a != nullptr && b != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) {
        const float first = (words[i] & 0xffff) >= drop.dropped ? (a[at + i] + bias_a[i]) * drop.scale : 0.0f;
        const float second = (words[i] >> 16) >= drop.dropped ? (b[at + i] + bias_b[i]) * drop.scale : 0.0f;
        rows[at + i] = first + second;
      }
    } else if (a != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) rows[at + i] = (words[i] & 0xffff) >= drop.dropped ? (a[at + i] + bias_a[i]) * drop.scale : 0.0f;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < d; ++i) rows[at + i] = (words[i] >> 16) >= drop.dropped ? (b[at + i] + bias_b[i]) * drop.scale : 0.0f;
    }
  }
}

void drop_cells_backward(CellDropout drop, int64_t cell, int64_t n, int64_t d, const float* rows, uint32_t* words, float* a, float* b,
                         float* sum_a, float* sum_b) {
  if (!drop.draws) std::memset(words, 0xff, d * sizeof(*words));
  for (int64_t k = 0; k < n; ++k) {
    if (drop.draws) draw_words(drop, cell + k, d, words);
    const int64_t at = k * d;
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) {
      const float v = rows[at + i] * drop.scale;
      const float first = (words[i] & 0xffff) >= drop.dropped ? v : 0.0f, second = (words[i] >> 16) >= drop.dropped ? v : 0.0f;
      a[at + i] = first;
      b[at + i] = second;
      sum_a[i] += first;
      sum_b[i] += second;
    }
  }
}

}  // namespace vifast::VIFAST_ISA
