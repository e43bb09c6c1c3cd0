// Normalised and gated planes of one sample, see kernels/prompt_mixture.py for the formulas.
#pragma once
#include <cstdint>

#include "isa.h"

namespace vifast {

// hidden [specific + common, positions]; mean, rstd, weight, bias for each plane; down [gate, common], up [common, gate] of the gate
// of the planes as they are (raw) and normalised.
struct PromptPlanes {
  const float *hidden, *mean, *rstd, *weight, *bias;
  int64_t specific, common, gate, positions;
  const float *raw_down, *raw_up, *normed_down, *normed_up;
  int64_t planes() const { return specific + common; }
  int64_t gates() const { return common * gate; }  // entries of one of the four matrices
};

// Floats of scratch for either function.
inline int64_t prompt_scratch(const PromptPlanes& in) { return 64 * (in.gate + in.gates()) + in.common * in.positions; }

// out: as hidden. `scratch` is aligned to 64 bytes.
VIFAST_DECLARE(prompt_mixture_forward, (const PromptPlanes& in, float* out, float* scratch))

// grad, to_hidden: as hidden; sums [planes, 2] of the gradient of u and of that times the normalised plane; to_gates: the four
// matrices, in their order. Specific planes of to_hidden are left for prompt_mixture_batch.
VIFAST_DECLARE(prompt_mixture_backward, (const PromptPlanes& in, bool instance, const float* grad, float* to_hidden, float* sums,
                                         float* to_gates, float* scratch))

// Specific planes of to_hidden, from the means [specific, 2] over the batch of what `sums` are sums of.
VIFAST_DECLARE(prompt_mixture_batch, (const PromptPlanes& in, const float* means, const float* grad, float* to_hidden))

}  // namespace vifast
