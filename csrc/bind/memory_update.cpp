#include "../memory_update.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../class_centers.h"
#include "../parallel.h"
#include "../rows_by_class.h"
#include "../tensor_view.h"
#include "bind.h"

namespace vifast {

namespace {

// The row of the class, of all streams, that is least similar to `global`; ties go to the lower stream, then row.
const float* least_similar(const float* x, int64_t streams, int64_t n, int64_t d, const float* global, const int64_t* rows, int64_t count) {
  const float* hardest = nullptr;
  double least = 0;
  for (int64_t s = 0; s < streams; ++s) {
    for (int64_t i = 0; i < count; ++i) {
      const float* row = x + (s * n + rows[i]) * d;
      double similarity;
      VIFAST_DISPATCH(row_product, row, global, d, &similarity);
      if (!std::isfinite(similarity)) similarity = -std::numeric_limits<double>::infinity();
      if (hardest == nullptr || similarity < least) hardest = row, least = similarity;
    }
  }
  return hardest;
}

void update_memory(py::object memory, py::object feat, py::object labels, double keep, double keep_global, int threads) {
  const TensorView vm(memory, "memory"), vx(feat, "feat");
  float* sets = vm.data<float>({-1, -1, -1});
  const int64_t streams = vm.size(0) - 1, k = vm.size(1), d = vm.size(2);
  const float* x = vx.data<float>({streams, -1, d});
  const int64_t n = vx.size(1);
  const int64_t* codes = TensorView(labels, "labels").data<int64_t>({n});
  py::gil_scoped_release release;
  const RowsByClass groups(codes, n, k);
  std::vector<int64_t> present;
  for (int64_t c = 0; c < k; ++c) {
    if (groups.count(c) > 0) present.push_back(c);
  }
  const int64_t updates = (streams + 1) * static_cast<int64_t>(present.size());
  const int64_t grain = std::max<int64_t>(1, (1 << 15) * updates / std::max<int64_t>(1, 2 * streams * n * d));
  parallel_for(updates, grain, threads, [&](int64_t u0, int64_t u1) {
    std::vector<float> mean(d);
    for (int64_t u = u0; u < u1; ++u) {
      const int64_t c = present[u / (streams + 1)], s = u % (streams + 1), count = groups.count(c);
      float* row = sets + (s * k + c) * d;
      if (s < streams) {
        VIFAST_DISPATCH(mean_of_rows, x + s * n * d, d, groups.of(c), count, mean.data());
        VIFAST_DISPATCH(blend_unit_row, row, mean.data(), d, keep);
      } else {
        VIFAST_DISPATCH(blend_unit_row, row, least_similar(x, streams, n, d, row, groups.of(c), count), d, keep_global);
      }
    }
  });
}

}  // namespace

void bind_memory_update(py::module_& m) {
  m.def("memory_update", &update_memory, py::arg("memory"), py::arg("feat"), py::arg("labels"), py::arg("keep"), py::arg("keep_global"),
        py::arg("threads"), "Moves the rows of a memory whose classes are among the labels, in place.");
}

}  // namespace vifast
