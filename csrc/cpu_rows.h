// What the loops over rows have in common: typed views of an op's arrays.
#pragma once

#include "ops.h"
#include "vec.h"

namespace onp {
namespace {

// Positions ahead of the sum at which source rows are asked for: about the time a row takes from the third-level cache.
constexpr int64_t kAhead = 8;

template <typename Index>
struct Edges {
  const Index* indptr;
  const Index* indices;
  const Index* edge;
  int64_t last;

  explicit Edges(const Csr& csr)
      : indptr(static_cast<const Index*>(csr.indptr)),
        indices(static_cast<const Index*>(csr.indices)),
        edge(static_cast<const Index*>(csr.edge)),
        last(csr.edges - 1) {}
  int64_t number(int64_t p) const { return edge ? static_cast<int64_t>(edge[p]) : p; }
  int64_t ahead(int64_t p) const { return indices[p + kAhead < last ? p + kAhead : last]; }
};

template <typename Element>
inline const Element* row_of(const Rows& rows, int64_t copy, int64_t row) {
  return static_cast<const Element*>(rows.data) + copy * rows.copy + row * rows.row;
}

inline const float* of_copy(const Values& values, int64_t copy) {
  return values.data ? values.data + copy * values.copy : nullptr;
}

inline const uint8_t* of_copy(const Keep& keep, int64_t copy) {
  return keep.data ? keep.data + copy * keep.copy : nullptr;
}

inline bool kept(const uint8_t* keep, int64_t node) {
  return !keep || keep[node];
}

// Blocks of 16 or 8, 4, 2, 1 vectors, then the rest of a vector: calls visit(count, offset, lanes of the last vector).
template <int Vectors>
struct Count {
  static constexpr int value = Vectors;
};
template <typename Visit>
inline void for_blocks(int64_t width, const Visit& visit) {
  int64_t f = 0;
  for (; f + kRegisters * kLanes <= width; f += kRegisters * kLanes) visit(Count<kRegisters>{}, f, 0);
  if (kRegisters > 8 && f + 8 * kLanes <= width) visit(Count<8>{}, f, 0), f += 8 * kLanes;
  if (f + 4 * kLanes <= width) visit(Count<4>{}, f, 0), f += 4 * kLanes;
  if (f + 2 * kLanes <= width) visit(Count<2>{}, f, 0), f += 2 * kLanes;
  if (f + kLanes <= width) visit(Count<1>{}, f, 0), f += kLanes;
  if (f < width) visit(Count<1>{}, f, static_cast<int>(width - f));
}

// A vector that may be cut short: `lanes` 0 means all of it.
template <typename Element>
inline Vec load_some(const Element* from, int lanes) {
  return __builtin_expect(lanes != 0, 0) ? load(from, lanes) : load(from);
}
template <typename Element, typename Value>
inline void store_some(Element* to, Value value, int lanes) {
  lanes ? store(to, value, lanes) : store(to, value);
}

template <int Vectors, typename Element>
inline void prefetch(const Element* from) {
  constexpr int kLine = 64 / sizeof(Element);
  for (int f = 0; f < Vectors * kLanes; f += kLine) __builtin_prefetch(from + f);
}

}  // namespace
}  // namespace onp
