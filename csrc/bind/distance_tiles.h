// Tiles of the distances between two sets of rows, or within one set.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "rows.h"

namespace vifast {

class DistanceTiles {
 public:
  // x [n, d]; y [m, d], or null for x itself. origin [d], see common_mean, is left out of the products. pack: otherwise there is one
  // tile, of x with itself, and it is made of at most kSmall rows at once.
  DistanceTiles(const float* x, int64_t n, const float* y, int64_t m, int64_t d, std::vector<float> origin, bool pack, int threads)
      : x_(x), y_(y), n_(n), d_(d), packs_(pack), origin_(std::move(origin)), sq_x_(n), sq_y_(y == nullptr ? 0 : m) {
    if (pack) packed_x_ = PackedRows(x, n, d, origin_.data(), sq_x_.data(), threads);
    if (y != nullptr) packed_y_ = PackedRows(y, m, d, origin_.data(), sq_y_.data(), threads);
  }

  // out [t.rows, t.cols], clamped and rooted as in products_to_distances; of one set with itself any tile of the upper triangle.
  void fill(Tile t, float floor, bool root, float* out, int threads) {
    const bool own = y_ == nullptr, diagonal = own && t.row0 == t.col0;
    if (packs_) {
      products(packed_x_, own ? packed_x_ : packed_y_, t, diagonal, out, t.cols, threads);
    } else {
      small_products(x_, n_, d_, origin_.data(), out, sq_x_.data(), threads);
    }
    const float* sq = own ? sq_x_.data() : sq_y_.data();
    tile_distances(x_, own ? x_ : y_, d_, sq_x_.data(), sq, t, diagonal, floor, root, out, t.cols, threads);
    if (diagonal) mirror(out, t.rows, threads);
  }

  const std::vector<float>& origin() const { return origin_; }
  // Squared norms of rows less the origin; those of x are there once a tile is, and packed ones at once.
  const std::vector<float>& sq_x() const { return sq_x_; }
  const std::vector<float>& sq_y() const { return sq_y_; }

 private:
  const float *x_, *y_;
  int64_t n_, d_;
  bool packs_;
  std::vector<float> origin_, sq_x_, sq_y_;
  PackedRows packed_x_, packed_y_;
};

}  // namespace vifast
