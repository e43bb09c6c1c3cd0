// Preparation that the losses share: label codes, row norms, rows moved to their mean.
#pragma once
#include <cstdint>

namespace vifast {

// int64 labels of both sets become int32 codes with the same equalities; b may be null.
void encode_labels(const int64_t* a, int64_t n, const int64_t* b, int64_t m, int32_t* out_a, int32_t* out_b);

// sq[r] = ||x[r]||^2 of x [n, d].
void square_norms(const float* x, int64_t n, int64_t d, float* sq, int threads);

}  // namespace vifast
