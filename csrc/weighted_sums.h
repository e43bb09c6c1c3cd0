// Weighted sums of rows, W X, for the backward of the losses. Beside products of rows with rows (product.h) the other product
// that a loss needs; every element is one sum along the rows of X in their order, whatever the tile or the thread count.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr int64_t kSumsWidth = 48;   // columns made together
constexpr int64_t kSumsDepth = 512;  // rows of X whose columns are copied together: 96 KiB, in a second-level cache

struct Weights {  // W[r, j] = data[r * row + j * col]: a tile, or its transpose
  const float* data;
  int64_t row, col;
};

// Columns [c0, c1) of out [n, .] (rows `stride` apart) become W x, or W x more than they are (`add`); x [m, .] has rows x_stride
// apart. scratch [kSumsDepth * kSumsWidth], aligned to 64 bytes; null where x is such a panel itself, x_stride = kSumsWidth and c0 = 0,
// whose columns beyond c1 may hold anything.
VIFAST_DECLARE(weighted_sums, (Weights w, int64_t n, const float* x, int64_t m, int64_t x_stride, int64_t c0, int64_t c1, bool add,
                               float* out, int64_t stride, float* scratch))

}  // namespace vifast
