// Relations of rows to prototypes, R = softmax(cos / tau), as unit rows W = R / |R|, and the way back. The relation of these
// rows to each other is graph_alignment.h's.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// Rows [r0, r1) of products f_r . p_c become unit relations in place; inv_f, inv_p: inverse norms.
VIFAST_DECLARE(relation_rows, (float* tile, int64_t cols, int64_t r0, int64_t r1, const double* inv_f, const double* inv_p, double tau))

// Rows [r0, r1) of dL/dW become the factors of p_c in dL/d(unit f_r), in place.
VIFAST_DECLARE(relation_backward_rows, (float* grad, const float* unit, int64_t cols, int64_t r0, int64_t r1, const double* inv_p,
                                        double tau))

}  // namespace vifast
