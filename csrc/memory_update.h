// Rows of a memory of class features.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// *sum = <a, b>, in float64.
VIFAST_DECLARE(row_product, (const float* a, const float* b, int64_t d, double* sum))

// row = u / max(|u|, kLeastRowNorm) with u = keep row + (1 - keep) step.
VIFAST_DECLARE(blend_unit_row, (float* row, const float* step, int64_t d, double keep))

}  // namespace vifast
