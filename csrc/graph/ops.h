// Message passing over CSR rows: the contract that the CPU half (cpu*.cpp, rows.h, ...) and the CUDA half (cuda*.cu)
// share. No Python and no torch below this line of the project: raw pointers, element counts, a stream.
//
// Letters: K copies that share the structure, V rows, U columns (source rows), E edges, H heads of C channels, F = H *
// C features. Every op works on K copies at once; an array with copy stride 0 is shared by all of them. Strides count
// elements. Arrays without a named row stride are contiguous. `bf16` says that x-like arrays (Rows and the outputs of
// their kind) hold bfloat16 instead of float; sums are made in float either way, in an order that depends on
// the sizes alone (on CUDA also on whether arrays are aligned), so results repeat bit for bit and do not depend on the
// number of threads.
#pragma once

#include <cstdint>

namespace onp {

// Row r owns the positions indptr[r] .. indptr[r + 1] - 1. Position p reads source row indices[p], and the values of
// its edge (a weight, say) stand at edge[p]: a transposed graph keeps the edge numbers of the graph it came from.
struct Csr {
  const void* indptr;   // [V + 1] starts at 0, never falls, ends at E
  const void* indices;  // [E] each in [0, U)
  const void* edge;     // [E] or null: edge p stands at p
  int64_t rows;
  int64_t columns;
  int64_t edges;
  int index_bytes;  // 4 or 8, of all three arrays
  // CUDA only: rows cut into segments of bounded length, so that no warp works alone on a long row. Segment s is the
  // positions segment_begin[s] .. segment_begin[s + 1] - 1 of row segment_row[s]; rising, every row at least once.
  const int32_t* segment_row;    // [segments], or null: every row is one segment
  const int64_t* segment_begin;  // [segments + 1]
  const int32_t* row_segment;    // [V + 1] segments of row r: row_segment[r] .. row_segment[r + 1] - 1
  int64_t segments;
  const void* row;  // CUDA only: [E] the row that owns each position
};

struct Rows {
  const void* data;  // [K, N, F], features contiguous
  int64_t row;
  int64_t copy;
};

struct Values {
  const float* data;  // [K, N, ...]; null where the op says so
  int64_t copy;
};

// A pruned node neither sends nor receives: its edges are left out and its row of a result is zero.
struct Keep {
  const uint8_t* data;  // [K, V], 1: kept, 0: pruned; or null: all kept
  int64_t copy;
};

enum class Reduce { sum, mean, max };

// out[k, r, f] = sum over p of row r of weight[k, edge p, h] * scale[k, source] * x[k, source, f], f in head h;
// divided by the number of edges left (mean), or their largest term (max; a NaN wins). A row without edges is zero.
struct Spmm {
  Csr csr;
  Keep keep;
  Rows x;
  Values weight;   // [K, E, H], or null: every weight is one
  Values scale;    // [K, U] a factor per source row, or null
  void* out;       // [K, V, F]
  float* mean;     // [K, V] receives 1 / number of edges left (0 where none); or null, but not for mean of cut rows
  int32_t* arg;    // [K, V, F] max only: the winner's position counted from the row's first, -1: none; or null
  float* partial;  // CUDA with segments: [K, segments, F] to work in, but for max, whose rows are not cut
  int64_t copies, heads, channels;
  Reduce reduce;
  bool bf16;
};

// Gradients of max: the winner alone gets them. csr is the graph of the forward call.
struct SpmmMaxGrad {
  Csr csr;
  Csr transposed;  // CUDA only
  const int32_t* arg;
  Rows grad;           // [K, V, F] of the result
  Rows x;              // read for grad_weight only
  Values weight;       // [K, E] or null
  float* grad_x;       // [K, U, F] or null
  float* grad_weight;  // [K, E] or null
  int64_t copies, features;
  bool bf16;
};

// out[k, edge p, h] = scale[k, r] * <grad[k, r, h, :], x[k, source, h, :]>; 0 for an edge left out.
struct EdgeDot {
  Csr csr;  // edge must be null
  Keep keep;
  Rows grad;
  Rows x;
  Values scale;  // [K, V] or null
  float* out;    // [K, E, H]
  int64_t copies, heads, channels;
  bool bf16;
};

// out[k, e, h]: softmax of score[k, e, h] over the edges of e's row that are left; 0 for the others.
struct EdgeSoftmax {
  Csr csr;  // edge must be null
  Keep keep;
  Values score;
  float* out;
  int64_t copies, heads;
};

// out[k, e, h] = alpha[k, e, h] * (grad[k, e, h] - sum over the row's edges of alpha * grad). out may be grad.
struct EdgeSoftmaxGrad {
  Csr csr;
  Values alpha;
  Values grad;
  float* out;
  int64_t copies, heads;
};

// GATv2 (https://arxiv.org/abs/2105.14491, equation 7): score[e, h] = <att[h], leaky_relu(source[j, h] + target[i, h])>
// for the edge e from j to i; alpha = its softmax over the edges of i; out[i, h] = sum of alpha[e, h] * source[j, h].
struct Attention {
  Csr csr;
  Keep keep;
  Rows source;       // [K, U, H, C]
  Rows target;       // [K, V, H, C]
  const float* att;  // [H, C]
  float slope;
  float* alpha;    // [K, E, H]
  void* out;       // [K, V, H, C]
  float* partial;  // as in Spmm, for the gradients two of them
  int64_t copies, heads, channels;
  bool bf16;
};

constexpr int64_t kAttParts = 16;  // pieces in which grad_att is summed, whatever the number of threads

// First half of its gradient: what the receiving rows gather.
struct AttentionGradTarget {
  Attention forward;
  Rows grad;          // [K, V, H, C]
  float* grad_score;  // [K, E, H]
  void* grad_target;  // [K, V, H, C]
  float* grad_att;    // or null; CPU [kAttParts, H, C], the first receives the sum; CUDA [K * V, H, C], to be added up
};

// Second half: what the senders gather. forward.csr is the transposed graph, `partial` fits it.
struct AttentionGradSource {
  Attention forward;
  Rows grad;
  const float* grad_score;
  void* grad_source;  // [K, U, H, C]
};

// What is wrong with the arrays of csr, which lie in host memory, or null if nothing is.
const char* csr_fault(const Csr& csr);

// All pointers are host memory. Up to `threads` threads work where that pays.
void run_cpu(const Spmm& op, int threads);
void run_cpu(const SpmmMaxGrad& op, int threads);
void run_cpu(const EdgeDot& op, int threads);
void run_cpu(const EdgeSoftmax& op, int threads);
void run_cpu(const EdgeSoftmaxGrad& op, int threads);
void run_cpu(const Attention& op, int threads);
void run_cpu(const AttentionGradTarget& op, int threads);
void run_cpu(const AttentionGradSource& op, int threads);

// All pointers are memory of the current CUDA device; the work is queued on `stream` and not waited for. The arrays of
// csr must have been checked. Returns CUDA's text for a failed launch, or null.
const char* run_cuda(const Spmm& op, void* stream);
const char* run_cuda(const SpmmMaxGrad& op, void* stream);
const char* run_cuda(const EdgeDot& op, void* stream);
const char* run_cuda(const EdgeSoftmax& op, void* stream);
const char* run_cuda(const EdgeSoftmaxGrad& op, void* stream);
const char* run_cuda(const Attention& op, void* stream);
const char* run_cuda(const AttentionGradTarget& op, void* stream);
const char* run_cuda(const AttentionGradSource& op, void* stream);

}  // namespace onp
