// The instruction set that the CPU loops use on this machine.
#pragma once

namespace onp {

enum class Isa { generic, avx2, avx512 };

// Looked up once; generic on other processors than x86-64.
Isa isa();

// Its name: "avx512", "avx2" or "generic".
const char* isa_name();

}  // namespace onp
