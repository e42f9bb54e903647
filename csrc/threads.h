// A few threads that stay: starting one costs more than a small graph takes.
#pragma once

#include <cstdint>
#include <functional>

namespace onp {

// Calls work(i) for every i in [0, count), on the caller's thread and up to threads - 1 others; returns when all are
// done. Calls made while another one is running do their work alone.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work);

}  // namespace onp
