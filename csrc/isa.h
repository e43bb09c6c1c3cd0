// Instruction sets. Files named *.simd.cpp are compiled once per level (see setup.py) with VIFAST_ISA set to the level's
// name; the best level that the processor has is chosen once per process.
//
// Rule for *.simd.cpp: no templates or inline functions of the standard library. The linker keeps one copy of such a
// function, perhaps the one compiled for AVX-512, and an older processor would then run it.
#pragma once

#if defined(__x86_64__) && !defined(VIFAST_SCALAR_ONLY)
#define VIFAST_X86 1
#else
#define VIFAST_X86 0
#endif

namespace vifast {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

Isa isa();                     // the level in use
bool set_isa(Isa level);       // for tests; false where the processor lacks it
const char* isa_name(Isa level);

}  // namespace vifast

#if VIFAST_X86
#define VIFAST_DECLARE(name, signature) \
  namespace scalar { void name signature; } \
  namespace avx2 { void name signature; } \
  namespace avx512 { void name signature; }
#define VIFAST_DISPATCH(name, ...)                                   \
  do {                                                               \
    switch (::vifast::isa()) {                                       \
      case ::vifast::Isa::avx512: ::vifast::avx512::name(__VA_ARGS__); break; \
      case ::vifast::Isa::avx2: ::vifast::avx2::name(__VA_ARGS__); break;     \
      default: ::vifast::scalar::name(__VA_ARGS__);                  \
    }                                                                \
  } while (0)
#else
#define VIFAST_DECLARE(name, signature) namespace scalar { void name signature; }
#define VIFAST_DISPATCH(name, ...) ::vifast::scalar::name(__VA_ARGS__)
#endif
