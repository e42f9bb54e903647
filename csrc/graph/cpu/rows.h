// What the loops over rows have in common: typed views of an op's arrays.
#pragma once

#include <unistd.h>

#include "graph/ops.h"
#include "vec.h"

namespace onp {
namespace {

// Positions ahead of the sum at which source rows are asked for: about the time a row takes from the third-level cache.
constexpr int64_t kAhead = 8;

// Bytes that a core keeps to itself; asked for once.
inline int64_t own_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return 1 << 20;
}

template <typename Index>
struct Edges {
  const Index* indptr;
  const Index* indices;
  const Index* edge;
  int64_t last;
  bool far;  // source rows are worth asking for ahead of time: they do not stay in the core's own cache

  Edges(const Csr& csr, int64_t row_bytes)
      : indptr(static_cast<const Index*>(csr.indptr)),
        indices(static_cast<const Index*>(csr.indices)),
        edge(static_cast<const Index*>(csr.edge)),
        last(csr.edges ? csr.edges - 1 : 0),
        far(csr.columns * row_bytes > own_cache()) {}
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

template <auto Value>
struct Constant {
  static constexpr auto value = Value;
};

// Blocks of Most, Most / 2, ..., 1 vectors, then the rest of a vector: calls visit(count, cut, offset, lanes if cut).
template <int Most, typename Visit>
inline void for_blocks(int64_t width, const Visit& visit, int64_t f = 0) {
  for (; f + Most * kLanes <= width; f += Most * kLanes) visit(Constant<Most>{}, Constant<false>{}, f, 0);
  if constexpr (Most > 1) {
    if (f < width) for_blocks<Most / 2>(width, visit, f);
  } else {
    if (f < width) visit(Constant<1>{}, Constant<true>{}, f, static_cast<int>(width - f));
  }
}

template <bool Cut, typename Element>
inline Vec load_some(const Element* from, int lanes) {
  return Cut ? load(from, lanes) : load(from);
}
template <bool Cut, typename Element, typename Value>
inline void store_some(Element* to, Value value, int lanes) {
  Cut ? store(to, value, lanes) : store(to, value);
}

// The same for `Vectors` registers, where their order among themselves does not matter: see load_pair.
template <int Vectors, bool Cut, typename Element>
inline void load_all(const Element* from, int lanes, Vec (&to)[Vectors]) {
  if constexpr (Vectors == 1) {
    to[0] = load_some<Cut>(from, lanes);
  } else {
    for (int v = 0; v < Vectors; v += 2) load_pair(from + v * kLanes, to[v], to[v + 1]);
  }
}
template <int Vectors, bool Cut, typename Element>
inline void store_all(Element* to, const Vec (&value)[Vectors], int lanes) {
  if constexpr (Vectors == 1) {
    store_some<Cut>(to, value[0], lanes);
  } else {
    for (int v = 0; v < Vectors; v += 2) store_pair(to + v * kLanes, value[v], value[v + 1]);
  }
}

template <int Vectors, typename Element>
inline void prefetch(const Element* from) {
  constexpr int kLine = 64 / sizeof(Element);
  for (int f = 0; f < Vectors * kLanes; f += kLine) __builtin_prefetch(from + f);
}

}  // namespace
}  // namespace onp
