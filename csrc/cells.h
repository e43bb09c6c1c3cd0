// Cells of images, and what the prompts of kernels/prompt_insertion.py do with each: gathered as rows, dropped out, put back.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// An image [channels, height, width] in cells of side x side pixels, one after another along its rows.
struct CellGrid {
  int64_t channels, height, width, side;
  int64_t across() const { return width / side; }
  int64_t cells() const { return height / side * across(); }
  int64_t size() const { return channels * side * side; }  // of a cell: channel, row, column
};

// Cells [begin, begin + n) of an image to rows [n, size]; or, with a second image, of their sum.
VIFAST_DECLARE(gather_cells, (CellGrid grid, const float* image, const float* second, int64_t begin, int64_t n, float* rows))

// The rows to the cells of `to`; and of `sum`, unless it is null, the image and they.
VIFAST_DECLARE(scatter_cells, (CellGrid grid, const float* rows, int64_t begin, int64_t n, float* to, const float* image, float* sum))

// Of two parts of a prompt, which pixels are kept: those whose 16 bits are at least `dropped`.
struct CellDropout {
  bool draws;
  uint32_t seed_low, seed_high, dropped;
  float scale;  // of what is kept
};

// rows = keep (a + bias_a) + keep (b + bias_b) for n cells of d pixels, the first of them `cell` among all; a part may be null. rows
// may be a. words [d + 4].
VIFAST_DECLARE(drop_cells, (CellDropout drop, int64_t cell, int64_t n, int64_t d, const float* a, const float* bias_a, const float* b,
                            const float* bias_b, uint32_t* words, float* rows))

// a = keep rows, b = keep rows, and their columns' sums [d] more than they were. b may be rows.
VIFAST_DECLARE(drop_cells_backward, (CellDropout drop, int64_t cell, int64_t n, int64_t d, const float* rows, uint32_t* words, float* a,
                                     float* b, float* sum_a, float* sum_b))

}  // namespace vifast
