// Rows made ready for products (see product.h), and the products themselves on several threads.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "product.h"

namespace vifast {

struct FreeAligned {
  void operator()(float* p) const { std::free(p); }
};

// Memory for `count` floats, at a multiple of 64 bytes.
std::unique_ptr<float, FreeAligned> aligned(int64_t count);

class PackedRows {
 public:
  PackedRows() = default;
  // x [n, d] less `mean` [d], or as it is where mean is null; sq [n] becomes the squared norms of what is left.
  PackedRows(const float* x, int64_t n, int64_t d, const float* mean, float* sq, int threads);
  int64_t columns() const { return d_; }
  const float* from(int64_t row) const { return panels_.get() + row * d_; }  // row: a multiple of kPanel

 private:
  int64_t d_ = 0;
  std::unique_ptr<float, FreeAligned> panels_;
};

// A rectangle of a matrix of pairs.
struct Tile {
  int64_t row0, rows, col0, cols;
};

// Calls body(Tile) for the tiles of n x m pairs, row by row; of a set against itself, n x n, only those that touch the upper triangle.
constexpr int64_t kTile = 512;  // rows and columns: one float tile and its operands for kDepth columns fit second-level caches
template <class Body>
void each_tile(int64_t n, int64_t m, bool own, Body body) {
  for (int64_t i = 0; i < n; i += kTile) {
    for (int64_t j = own ? i : 0; j < m; j += kTile) body(Tile{i, n - i < kTile ? n - i : kTile, j, m - j < kTile ? m - j : kTile});
  }
}

// out [rows, cols], `stride` apart, of products of a's rows with b's; row0 and col0 are multiples of kPanel. `upper`: only the
// blocks of kPanel x kPanel that touch the tile's upper triangle.
void products(const PackedRows& a, const PackedRows& b, Tile tile, bool upper, float* out, int64_t stride, int threads);

// Products of x [n, d] less `mean` with itself (upper triangle of blocks), and its squared norms; n at most kSmall. The threads share the columns, not
// the rows: each packs what it multiplies, and at 64 rows moving packed rows between cores took as long as the products.
// Memory: the float32 sums of every run of kDepth columns, at most n x d. The bits are those of `products`.
constexpr int64_t kSmall = 256;
void small_products(const float* x, int64_t n, int64_t d, const float* mean, float* out, float* sq, int threads);

// The lower triangle of a square tile becomes the mirror of its upper one.
void mirror(float* tile, int64_t n, int threads);

// Mean of the finite entries of each column of x [n, d] and y [m, d] together; y may be null.
std::vector<float> common_mean(const float* x, int64_t n, const float* y, int64_t m, int64_t d, int threads);

}  // namespace vifast
