// How the arguments of a search are named and typed in Python.
#pragma once
#include <string>
#include <type_traits>

#include "../score_inl.h"
#include "../tensor_view.h"

namespace vifast {

inline Metric metric_of(const std::string& name) {
  if (name == "cosine") return Metric::cosine;
  if (name == "dot") return Metric::dot;
  if (name == "sqeuclidean") return Metric::sqeuclidean;
  throw py::value_error("metric: expected cosine, dot or sqeuclidean, got " + name);
}

template <class R>
constexpr RowType row_type() {
  if (std::is_same_v<R, double>) return RowType::float64;
  if (std::is_same_v<R, Float16Bits>) return RowType::float16;
  if (std::is_same_v<R, BFloat16Bits>) return RowType::bfloat16;
  return RowType::float32;
}

}  // namespace vifast
