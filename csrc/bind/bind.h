#pragma once
#include <pybind11/pybind11.h>

namespace vifast {

void bind_distance(pybind11::module_& m);
void bind_batch_hard(pybind11::module_& m);
void bind_weighted_triplet(pybind11::module_& m);
void bind_ranking(pybind11::module_& m);
void bind_topk(pybind11::module_& m);

}  // namespace vifast
