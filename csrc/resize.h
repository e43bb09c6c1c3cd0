// Resize of 8-bit RGB images in fixed point, first along rows, then along columns: see vifast/data/resize.py.
#pragma once
#include <cstdint>
#include <vector>

#include "isa.h"

namespace vifast {

enum class Filter : int { bilinear = 0, lanczos = 1 };

// Output k of a line is the sum over t < count[k] of weight[k * most + t] / 2^22 times input first[k] + t.
struct Line {
  int64_t out, most;
  const int32_t *first, *count, *weight;
};

// The same for kBlock outputs at a time: offset[kBlock b + j] is the byte of the first pixel of output kBlock b + j, and weight[t][j] is
// the weight of its pixel t, taps[b] rows of kBlock for block after block.
constexpr int64_t kBlock = 16;
struct Blocks {
  int64_t out, n;
  const int32_t *taps, *offset, *weight;
};

class Taps {
 public:
  Taps(int64_t in, int64_t out, Filter filter);
  const int64_t in, out;
  Line line() const { return {out, most_, first_.data(), count_.data(), weight_.data()}; }
  Blocks blocks() const { return {out, (out + kBlock - 1) / kBlock, block_taps_.data(), block_offset_.data(), block_weight_.data()}; }

 private:
  int64_t most_;
  std::vector<int32_t> first_, count_, weight_, block_taps_, block_offset_, block_weight_;
};

// Image [rows.in, columns.in, 3] to [rows.out, columns.out, 3]: `columns` are the taps along a row. scratch: resize_scratch() bytes.
void resize(const uint8_t* image, const Taps& rows, const Taps& columns, uint8_t* scratch, uint8_t* out);
int64_t resize_scratch(const Taps& rows, const Taps& columns);

constexpr int64_t kSlack = 3 * kBlock + 4;

// n rows of pixels, `stride` bytes apart. Reads a byte past the last row, writes up to kSlack past its output.
VIFAST_DECLARE(resize_rows, (const uint8_t* rows, int64_t n, int64_t stride, Blocks blocks, uint8_t* out))

// Rows of `width` bytes.
VIFAST_DECLARE(resize_columns, (const uint8_t* rows, int64_t width, Line line, uint8_t* out))

}  // namespace vifast
