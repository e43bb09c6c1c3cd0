// vifast.kernels._CUDA: CUDA C++ for what Triton expresses badly, over DLPack views of device memory. Workspace is allocated
// by the caller; `stream` is the integer of torch.cuda.current_stream().cuda_stream, and nothing waits for the device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "ranking_cuda.h"
#include "tensor_view.h"

namespace vifast {

namespace {

template <class T>
void rank_count(py::object keys, py::object query_identity, py::object gallery_identity, py::object drop_camera,
                py::object gallery_camera, bool own_only, py::object begin, py::object row, py::object slot, py::object rank,
                py::object first, py::object seen, uintptr_t stream) {
  constexpr int32_t kGpu = dlpack::kCUDA;
  TensorView k(keys, "keys"), qi(query_identity, "query_identity"), gi(gallery_identity, "gallery_identity"),
      dc(drop_camera, "drop_camera"), gc(gallery_camera, "gallery_camera"), b(begin, "begin"), r(row, "row"), s(slot, "slot"), out(rank, "rank"), f(first, "first");
  const T* pk = k.data<T>({-1, -1}, kGpu);
  const int64_t n = k.size(0), size = k.size(1);
  RankJob job{n, size, qi.data<int32_t>({n}, kGpu), gi.data<int32_t>({size}, kGpu), dc.data<int32_t>({n}, kGpu),
              gc.data<int32_t>({size}, kGpu), own_only, b.data<int64_t>({-1}, kGpu), r.data<int64_t>({size}, kGpu),
              s.data<int64_t>({n + 1}, kGpu), out.data<int64_t>({-1}, kGpu), f.data<int64_t>({n}, kGpu), nullptr, 0};
  if (!seen.is_none()) {
    TensorView bits(seen, "seen");
    job.seen = reinterpret_cast<uint32_t*>(bits.data<int32_t>({n, -1}, kGpu));
    job.words = bits.size(1);
    if (job.words * 32 < b.size(0) - 1) throw py::value_error("seen: expected a bit per identity");
  }
  const char* error = rank_count_cuda<T>(pk, job, k.device_id(), reinterpret_cast<void*>(stream));
  if (error != nullptr) throw std::runtime_error(std::string("rank_count: ") + error);
}

}  // namespace

}  // namespace vifast

PYBIND11_MODULE(_CUDA, m) {
  namespace py = pybind11;
  m.doc() = "CUDA arithmetic of vifast.";
  const auto define = [&](const char* name, auto function) {
    m.def(name, function, py::arg("keys"), py::arg("query_identity"), py::arg("gallery_identity"), py::arg("drop_camera"),
          py::arg("gallery_camera"), py::arg("own_only"), py::arg("begin"), py::arg("row"), py::arg("slot"), py::arg("rank"),
          py::arg("first"), py::arg("seen"), py::arg("stream"), "Ranks of the positives of every row of keys, and first hits.");
  };
  define("rank_count_float32", &vifast::rank_count<float>);
  define("rank_count_float64", &vifast::rank_count<double>);
}
