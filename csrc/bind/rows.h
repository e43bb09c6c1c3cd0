// What the losses share: label codes, tiles of distances.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../packed_rows.h"

namespace vifast {

// Rows that are worth a thread where each takes a few exponentials of `cols` columns.
inline int64_t row_share(int64_t cols) { return 1 + (1 << 13) / (cols + 1); }

// int64 labels of both sets become int32 codes with the same equalities; b may be null.
void encode_labels(const int64_t* a, int64_t n, const int64_t* b, int64_t m, int32_t* out_a, int32_t* out_b);

// A tile of products of rows of x and y, less their mean, becomes one of distances in place (see products_to_distances); sq_x, sq_y:
// squared norms of all rows less the mean. `upper`: only the blocks of kPanel x kPanel that touch the upper triangle.
void tile_distances(const float* x, const float* y, int64_t d, const float* sq_x, const float* sq_y, Tile tile, bool upper, float floor,
                    bool root, float* out, int64_t stride, int threads);

// Rows, or columns, of a tile of softmax arithmetic below which a second thread does not pay.
inline int64_t row_grain(int64_t cols) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, cols)); }
inline int64_t col_grain(int64_t rows) { return std::max<int64_t>(64, (1 << 13) / std::max<int64_t>(1, rows)); }

}  // namespace vifast
