// The threads that torch works with: OpenMP's.
#pragma once

#include <cstdint>
#include <functional>

namespace onp {

// Calls work(i) for every i in [0, count), on up to `threads` threads, the caller's among them; returns when all are
// done. Without OpenMP in the process, after a fork, and while another such call is running, the caller works alone.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work);

}  // namespace onp
