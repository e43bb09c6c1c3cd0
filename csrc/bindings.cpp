// vifast.kernels._C: arithmetic of the ops over DLPack views. Contracts are in csrc/<op>.h, bindings in csrc/bind/<op>.cpp.
#include <pybind11/pybind11.h>

#include "bind/bind.h"
#include "isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU arithmetic of vifast. Arguments are tensors or arrays; outputs are allocated by the caller.";
  m.def("isa", [] { return vifast::isa_name(vifast::isa()); }, "The instruction set in use.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        for (auto level : {vifast::Isa::scalar, vifast::Isa::avx2, vifast::Isa::avx512}) {
          if (name == vifast::isa_name(level)) return vifast::set_isa(level);
        }
        throw pybind11::value_error("name: expected scalar, avx2 or avx512, got " + name);
      },
      pybind11::arg("name"), "Use an instruction set for the rest of the process; False where the processor lacks it.");
  vifast::bind_packed_rows(m);
  vifast::bind_distance(m);
  vifast::bind_batch_hard(m);
  vifast::bind_weighted_triplet(m);
  vifast::bind_neighbor_loss(m);
  vifast::bind_planes(m);
  vifast::bind_gem_pool(m);
  vifast::bind_augment(m);
  vifast::bind_purifier(m);
  vifast::bind_class_centers(m);
  vifast::bind_center_loss(m);
  vifast::bind_memory_update(m);
  vifast::bind_graph_alignment(m);
  vifast::bind_prototype_alignment(m);
  vifast::bind_unit_rows(m);
  vifast::bind_symmetric_kl(m);
  vifast::bind_entropy_hinge(m);
  vifast::bind_standardized_kl(m);
  vifast::bind_decoupled_kl(m);
  vifast::bind_prompt_consistency(m);
  vifast::bind_prompt_hidden(m);
  vifast::bind_prompt_insertion(m);
  vifast::bind_prompt_mixture(m);
  vifast::bind_percentile_mask(m);
  vifast::bind_confidence_weights(m);
  vifast::bind_blur_jitter(m);
  vifast::bind_rank_shard(m);
  vifast::bind_ranking(m);
  vifast::bind_topk(m);
  vifast::bind_rerank(m);
  vifast::bind_resize(m);
}
