#include "../isa.h"

#include <atomic>

namespace vifast {

namespace {

bool supported(Isa level) {
#if VIFAST_X86
  switch (level) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return level == Isa::scalar;
#endif
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> level{supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::scalar};
  return level;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(Isa level) {
  if (!supported(level)) return false;
  current().store(level, std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa level) {
  switch (level) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "scalar";
  }
}

}  // namespace vifast
