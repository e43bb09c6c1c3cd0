#pragma once
#include <pybind11/pybind11.h>

namespace vifast {

void bind_packed_rows(pybind11::module_& m);
void bind_distance(pybind11::module_& m);
void bind_batch_hard(pybind11::module_& m);
void bind_weighted_triplet(pybind11::module_& m);
void bind_neighbor_loss(pybind11::module_& m);
void bind_planes(pybind11::module_& m);
void bind_gem_pool(pybind11::module_& m);
void bind_augment(pybind11::module_& m);
void bind_purifier(pybind11::module_& m);
void bind_class_centers(pybind11::module_& m);
void bind_center_loss(pybind11::module_& m);
void bind_memory_update(pybind11::module_& m);
void bind_graph_alignment(pybind11::module_& m);
void bind_prototype_alignment(pybind11::module_& m);
void bind_unit_rows(pybind11::module_& m);
void bind_symmetric_kl(pybind11::module_& m);
void bind_entropy_hinge(pybind11::module_& m);
void bind_standardized_kl(pybind11::module_& m);
void bind_decoupled_kl(pybind11::module_& m);
void bind_prompt_consistency(pybind11::module_& m);
void bind_prompt_hidden(pybind11::module_& m);
void bind_prompt_insertion(pybind11::module_& m);
void bind_prompt_mixture(pybind11::module_& m);
void bind_percentile_mask(pybind11::module_& m);
void bind_confidence_weights(pybind11::module_& m);
void bind_blur_jitter(pybind11::module_& m);
void bind_rank_shard(pybind11::module_& m);
void bind_ranking(pybind11::module_& m);
void bind_topk(pybind11::module_& m);
void bind_rerank(pybind11::module_& m);
void bind_resize(pybind11::module_& m);

}  // namespace vifast
