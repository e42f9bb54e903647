// Loops that are compiled once per instruction set (CMakeLists.txt defines ONP_ISA) fill one table of functions each:
//   const Table& ONP_TABLE(name)() { ... }        defines name_avx2() where ONP_ISA is avx2
//   ONP_DECLARE_TABLES(Table, name)               declares name_generic() and, on x86-64, name_avx2() and name_avx512()
//   ONP_CHOOSE_TABLE(name)                        is the one of this machine
#pragma once

#include "isa.h"

#define ONP_JOIN_(a, b) a##_##b
#define ONP_JOIN(a, b) ONP_JOIN_(a, b)
#define ONP_TABLE(name) ONP_JOIN(name, ONP_ISA)

#if defined(__x86_64__)
#define ONP_DECLARE_TABLES(Table, name) \
  const Table& name##_generic();        \
  const Table& name##_avx2();           \
  const Table& name##_avx512();
#else
#define ONP_DECLARE_TABLES(Table, name) const Table& name##_generic();
#endif

#if defined(__x86_64__) && !defined(ONP_ONE_ISA)
#define ONP_CHOOSE_TABLE(name) \
  (isa() == Isa::avx512 ? name##_avx512() : isa() == Isa::avx2 ? name##_avx2() : name##_generic())
#else
#define ONP_CHOOSE_TABLE(name) name##_generic()
#endif
