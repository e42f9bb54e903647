// One vector register of floats, in the widest form that the file including this is compiled for.
// Each of these files is compiled once per instruction set, so everything here has internal linkage: a shared inline
// function could be linked from the wrong one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace onp {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 16;  // accumulators that fit beside everything else
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 8;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 8;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t BitVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));
typedef uint16_t Bf16;

inline Vec broadcast(float value) {
  return value - Vec{};
}

// By intrinsics where there are any: GCC 12 converts the two halves of a vector one by one.
inline Vec widen(HalfVec half) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)half), 16);
#else
  return (Vec)(__builtin_convertvector(half, BitVec) << 16);
#endif
}

// Round to nearest even; a NaN stays one.
inline HalfVec narrow(Vec value) {
  const BitVec bits = (BitVec)value;
  const BitVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitVec quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(value == value ? rounded : quiet, HalfVec);
}

inline Vec load(const float* from) {
  Vec value;
  memcpy(&value, from, sizeof value);
  return value;
}
inline Vec load(const Bf16* from) {
  HalfVec half;
  memcpy(&half, from, sizeof half);
  return widen(half);
}
inline void store(float* to, Vec value) {
  memcpy(to, &value, sizeof value);
}
inline void store(Bf16* to, Vec value) {
  const HalfVec half = narrow(value);
  memcpy(to, &half, sizeof half);
}
inline void store(int32_t* to, IntVec value) {
  memcpy(to, &value, sizeof value);
}

// The first n lanes, 0 < n < kLanes; the others are zero, and memory behind them is not touched.
inline Vec load(const float* from, int n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#else
  Vec value = {};
  for (int i = 0; i < n; ++i) value[i] = from[i];
  return value;
#endif
}
inline Vec load(const Bf16* from, int n) {
#if defined(__AVX512F__)
  return widen((HalfVec)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), from));
#else
  HalfVec half = {};
  for (int i = 0; i < n; ++i) half[i] = from[i];
  return widen(half);
#endif
}
inline void store(float* to, Vec value, int n) {
  memcpy(to, &value, n * sizeof(float));
}
inline void store(Bf16* to, Vec value, int n) {
  const HalfVec half = narrow(value);
  memcpy(to, &half, n * sizeof(Bf16));
}
inline void store(int32_t* to, IntVec value, int n) {
  memcpy(to, &value, n * sizeof(int32_t));
}

inline float to_float(float value) {
  return value;
}
inline float to_float(Bf16 value) {
  const uint32_t bits = uint32_t{value} << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline float sum_of(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)value);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += value[i];
  return total;
#endif
}

inline Vec leaky_relu(Vec z, float slope) {
  return z > 0 ? z : z * slope;
}

// e^x for x <= 0, within 2 units in the last place; 0 below -87.3 (and for -inf), NaN for NaN.
// Cody and Waite's range reduction, then the Taylor polynomial on [-ln 2 / 2, ln 2 / 2].
inline Vec exp_of(Vec x) {
  const Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part ends up in the low bits
  const Vec whole = shifted - 12582912.0f;
  const Vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec p = broadcast(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Vec power = (Vec)(((BitVec)shifted + 127u) << 23);
  return x < -87.3f ? Vec{} : p * power;
}

}  // namespace
}  // namespace onp
