// Five pooled vectors of a normalised, gated map and their gradient, plane by plane: see kernels/purifier.py for the formulas.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

constexpr float kPurifierEps = 1e-6f;

// n planes of the three maps, and what belongs to each plane.
struct PurifierPlanes {
  const float *x, *gate_u, *gate_x;
  const float *mean, *rstd, *weight, *bias;
  int64_t n, positions;
};

// pooled[v * stride + k] for the five values v of plane k.
VIFAST_DECLARE(purifier_forward, (PurifierPlanes in, float* pooled, int64_t stride))

// grad, pooled: as above. to_x, to_gate_u, to_gate_x [n, positions]; sums[0 * stride + k] of dL/du, sums[stride + k] of dL/du times the
// normalised x; step [positions] is scratch.
VIFAST_DECLARE(purifier_backward, (PurifierPlanes in, bool instance, const float* grad, const float* pooled, int64_t stride, float* to_x,
                                   float* to_gate_u, float* to_gate_x, float* sums, float* step))

}  // namespace vifast
