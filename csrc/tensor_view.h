// TensorView: how an argument crosses from Python. Any object that speaks DLPack becomes pointer, shape, strides,
// dtype and device on the stack; what does not fit is refused with a message that names the argument.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "dlpack_abi.h"

namespace vifast {

namespace py = pybind11;

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr dlpack::DataType value{dlpack::kFloat, 32, 1};
  static constexpr const char* name = "float32";
};
template <>
struct DTypeOf<double> {
  static constexpr dlpack::DataType value{dlpack::kFloat, 64, 1};
  static constexpr const char* name = "float64";
};
struct Float16Bits {
  uint16_t bits;
};
struct BFloat16Bits {
  uint16_t bits;
};
template <>
struct DTypeOf<Float16Bits> {
  static constexpr dlpack::DataType value{dlpack::kFloat, 16, 1};
  static constexpr const char* name = "float16";
};
template <>
struct DTypeOf<BFloat16Bits> {
  static constexpr dlpack::DataType value{dlpack::kBfloat, 16, 1};
  static constexpr const char* name = "bfloat16";
};
template <>
struct DTypeOf<int32_t> {
  static constexpr dlpack::DataType value{dlpack::kInt, 32, 1};
  static constexpr const char* name = "int32";
};
template <>
struct DTypeOf<int64_t> {
  static constexpr dlpack::DataType value{dlpack::kInt, 64, 1};
  static constexpr const char* name = "int64";
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr dlpack::DataType value{dlpack::kUInt, 8, 1};
  static constexpr const char* name = "uint8";
};
template <>
struct DTypeOf<bool> {
  static constexpr dlpack::DataType value{dlpack::kBool, 8, 1};
  static constexpr const char* name = "bool";
};

template <class T>
struct Matrix {  // element [r, c] is data[r * row + c * col]
  T* data;
  int64_t row, col;
};

class TensorView {
 public:
  TensorView(py::handle object, const char* name) : name_(name) {
    if (const dlpack::ExchangeApi* api = exchange_api(object)) {
      if (api->tensor_from_object(object.ptr(), &t_) != 0) throw py::error_already_set();
      return;
    }
    if (!py::hasattr(object, "__dlpack__")) {
      throw py::type_error(std::string(name) + ": expected a tensor or an array (an object with __dlpack__), got " +
                           std::string(py::str(py::type::of(object).attr("__name__"))));
    }
    // torch refuses to export what requires grad; the ops hold the autograd graph themselves.
    py::object source = py::hasattr(object, "detach") ? object.attr("detach")() : py::reinterpret_borrow<py::object>(object);
    capsule_ = source.attr("__dlpack__")();
    t_ = py::reinterpret_borrow<py::capsule>(capsule_).get_pointer<dlpack::ManagedTensor>()->tensor;
  }

  // Pointer to the first element of a C-contiguous tensor of T on `device`, with the given sizes (-1: any).
  template <class T>
  T* data(std::initializer_list<int64_t> sizes, int32_t device = dlpack::kCPU) const {
    check_sizes(sizes);
    return first<T>(device);
  }

  // Pointer to the first element of a map [N, C, H, W] on the CPU, C-contiguous or with `channels_last` channels fastest.
  template <class T>
  T* map(bool channels_last) const {
    if (!channels_last) return data<T>({-1, -1, -1, -1});
    return first<T>(dlpack::kCPU);
  }

  // A matrix [rows, cols] on the CPU with any strides.
  template <class T>
  Matrix<T> matrix(int64_t rows, int64_t cols) const {
    if (t_.ndim != 2 || t_.shape[0] != rows || t_.shape[1] != cols) check_sizes({rows, cols});
    return {first<T>(dlpack::kCPU), t_.strides ? t_.strides[0] : cols, t_.strides ? t_.strides[1] : 1};
  }

  // The same of a matrix whose rows are contiguous, *stride elements apart.
  template <class T>
  T* rows(int64_t rows, int64_t cols, int64_t* stride) const {
    const Matrix<T> m = matrix<T>(rows, cols);
    *stride = rows > 1 ? m.row : cols;
    if ((cols > 1 && m.col != 1) || *stride < cols) check_sizes({rows, cols});
    return m.data;
  }

  template <class T>
  bool is() const {
    const dlpack::DataType want = DTypeOf<T>::value;
    return t_.dtype.code == want.code && t_.dtype.bits == want.bits && t_.dtype.lanes == 1;
  }

  // Dense with channels fastest, of [N, C, H, W], and not C-contiguous as well.
  bool channels_last() const {
    if (t_.ndim != 4 || t_.strides == nullptr) return false;
    constexpr int kLast[] = {0, 2, 3, 1};
    return dense(4, [&](int k) { return kLast[k]; }) && !dense(4, [](int d) { return d; });
  }

  int64_t size(int dim) const { return t_.shape[dim]; }
  int32_t device_id() const { return t_.device.id; }

 private:
  template <class T>
  T* first(int32_t device) const {
    check_device(device);
    if (!is<T>()) throw py::type_error(std::string(name_) + ": expected dtype " + DTypeOf<T>::name + ", got " + dtype_text());
    return reinterpret_cast<T*>(static_cast<char*>(t_.data) + t_.byte_offset);
  }

  static const dlpack::ExchangeApi* exchange_api(py::handle object) {
    // One entry is enough: a process passes tensors of one type. The GIL guards it.
    static PyTypeObject* cached_type = nullptr;
    static const dlpack::ExchangeApi* cached_api = nullptr;
    PyTypeObject* type = Py_TYPE(object.ptr());
    if (type == cached_type) return cached_api;
    py::handle handle(reinterpret_cast<PyObject*>(type));
    if (!py::hasattr(handle, "__dlpack_c_exchange_api__")) return nullptr;
    py::object capsule = handle.attr("__dlpack_c_exchange_api__");
    auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) throw py::error_already_set();
    while (api != nullptr && api->version.major != 1) api = api->previous;
    if (api == nullptr || api->tensor_from_object == nullptr) return nullptr;
    Py_INCREF(type);  // the cache keeps its key alive
    cached_type = type;
    cached_api = api;
    return api;
  }

  void check_device(int32_t device) const {
    if (t_.device.type == device || (device == dlpack::kCPU && t_.device.type == dlpack::kCUDAHost)) return;
    throw py::value_error(std::string(name_) + ": expected a tensor on " + (device == dlpack::kCPU ? "the CPU" : "a CUDA device") +
                          ", got DLPack device type " + std::to_string(t_.device.type));
  }

  void check_sizes(std::initializer_list<int64_t> sizes) const {
    bool fits = t_.ndim == static_cast<int32_t>(sizes.size());
    int dim = 0;
    for (int64_t want : sizes) {
      if (fits && want >= 0 && t_.shape[dim] != want) fits = false;
      ++dim;
    }
    if (!fits) {
      throw py::value_error(std::string(name_) + ": expected shape " + shape_text(sizes.begin(), static_cast<int>(sizes.size())) + ", got " +
                            shape_text(t_.shape, t_.ndim));
    }
    bool empty = false;  // then any strides will do
    for (int d = 0; d < t_.ndim; ++d) empty = empty || t_.shape[d] == 0;
    if (!empty && t_.strides != nullptr && !dense(t_.ndim, [](int d) { return d; })) throw py::value_error(std::string(name_) + ": expected a contiguous tensor");
  }

  // Whether elements lie one after another, dimension order(0) varying slowest.
  template <class Order>
  bool dense(int ndim, Order order) const {
    int64_t step = 1;
    for (int k = ndim - 1; k >= 0; --k) {
      const int d = order(k);
      if (t_.shape[d] > 1 && t_.strides[d] != step) return false;
      step *= t_.shape[d];
    }
    return true;
  }

  static std::string shape_text(const int64_t* sizes, int ndim) {
    std::string text = "[";
    for (int d = 0; d < ndim; ++d) text += (d ? ", " : "") + (sizes[d] < 0 ? std::string("any") : std::to_string(sizes[d]));
    return text + "]";
  }

  std::string dtype_text() const {
    static const char* const kinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
    const char* kind = t_.dtype.code < 7 ? kinds[t_.dtype.code] : "unknown";
    return t_.dtype.code == dlpack::kBool ? kind : kind + std::to_string(t_.dtype.bits);
  }

  dlpack::Tensor t_{};
  py::object capsule_;  // keeps the memory alive where the exchange table is absent
  const char* name_;
};

}  // namespace vifast
