// What the bindings of the prompts share: their sizes, which samples are of which modality, rows of cells and their products.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "../cells.h"
#include "../packed_rows.h"
#include "../parallel.h"
#include "../tensor_view.h"
#include "../weighted_sums.h"

namespace vifast {

constexpr int64_t kCells = 64;         // gathered together: 192 KiB of 16 x 16 pixels of three channels
constexpr int64_t kSampleGroups = 16;  // whose sums over samples are made apart, whatever the threads

// Samples [first(g), first(g + 1)) of a group.
inline int64_t first_sample(int64_t group, int64_t samples) { return group * samples / kSampleGroups; }

// Images [B, C, H, W] in cells, and the columns of a sample: S specific ones of its modality, then the common ones.
struct PromptSizes {
  CellGrid grid;
  int64_t samples, specific, common;
  const int64_t* modality;
  int64_t columns() const { return specific + common; }
  int64_t packed() const { return 2 * specific + common; }
  int64_t pixels() const { return grid.channels * grid.height * grid.width; }
  int64_t infrared(int64_t sample) const { return modality[sample] != 0; }
  // The packed row of column r.
  int64_t row(int64_t modality, int64_t r) const { return r < specific ? modality * specific + r : specific + r; }
};

inline PromptSizes prompt_sizes(const TensorView& images, const py::object& modality, int64_t packed, int64_t specific, int64_t side) {
  images.data<float>({-1, -1, -1, -1});
  const CellGrid grid{images.size(1), images.size(2), images.size(3), side};
  if (side < 1 || grid.height % side != 0 || grid.width % side != 0) {
    throw py::value_error("images: expected height and width to be multiples of " + std::to_string(side));
  }
  if (specific < 0 || packed < 2 * specific) throw py::value_error("specific: expected at most half of the packed rows");
  return {grid, images.size(0), specific, packed - 2 * specific, TensorView(modality, "modality").data<int64_t>({images.size(0)})};
}

// One thread's buffers.
struct CellBuffer {
  explicit CellBuffer(const PromptSizes& of, int64_t rows = 1)
      : rows(aligned(rows * kCells * of.grid.size())), columns(aligned(kCells * of.columns())), panel(aligned(kSumsDepth * kSumsWidth)) {}

  // out [n, cols] = weights [n, m] x [m, cols]; `add`: that more than it was.
  void products(Weights weights, int64_t n, const float* x, int64_t m, int64_t x_stride, int64_t cols, float* out, bool add = false) {
    float* scratch = x_stride == kSumsWidth ? nullptr : panel.get();
    VIFAST_DISPATCH(weighted_sums, weights, n, x, m, x_stride, 0, cols, add, out, cols, scratch);
  }

  std::unique_ptr<float, FreeAligned> rows, columns, panel;
};

// How far apart to lay the rows of a map of few columns that many products share: as a panel of weighted_sums, if they fit.
inline int64_t panel_stride(int64_t columns) { return columns <= kSumsWidth ? kSumsWidth : columns; }

// Calls body(first cell, cells) for blocks of the cells of an image.
template <class Body>
void each_cells(const CellGrid& grid, Body body) {
  for (int64_t begin = 0; begin < grid.cells(); begin += kCells) body(begin, std::min(kCells, grid.cells() - begin));
}

}  // namespace vifast
