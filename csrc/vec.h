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

// The bits whose upper half is the nearest bfloat16, the even one of two; a NaN stays one.
inline BitVec rounded(Vec value) {
  const BitVec bits = (BitVec)value;
  return value == value ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u;
}

inline HalfVec narrow(Vec value) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i upper = (__m256i)(rounded(value) >> 16);
  return (HalfVec)_mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
#else
  return __builtin_convertvector(rounded(value) >> 16, HalfVec);
#endif
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

// Two registers of neighbouring features. Those of bfloat16 come as even and odd ones, which takes half the
// instructions of widening them in order; what becomes of each lane does not depend on its place.
inline void load_pair(const float* from, Vec& first, Vec& second) {
  first = load(from), second = load(from + kLanes);
}
inline void load_pair(const Bf16* from, Vec& even, Vec& odd) {
  BitVec both;
  memcpy(&both, from, sizeof both);
  even = (Vec)(both << 16), odd = (Vec)(both & 0xffff0000u);
}
inline void store_pair(float* to, Vec first, Vec second) {
  store(to, first), store(to + kLanes, second);
}
inline void store_pair(Bf16* to, Vec even, Vec odd) {
  const BitVec both = rounded(even) >> 16 | (rounded(odd) & 0xffff0000u);
  memcpy(to, &both, sizeof both);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits of the first n lanes, 0 <= n <= kLanes. Lane by lane every n would cost a branch that is guessed wrong.
inline __m256i mask_of(int n) {
  static const int32_t bits[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + kLanes - n));
}
#endif

// The first n lanes, 0 <= n <= kLanes; the others are zero, and memory behind them is not touched.
inline Vec load(const float* from, int n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#elif defined(__AVX2__)
  return (Vec)_mm256_maskload_ps(from, mask_of(n));
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
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)value);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(to, mask_of(n), (__m256)value);
#else
  for (int i = 0; i < n; ++i) to[i] = value[i];
#endif
}
inline void store(Bf16* to, Vec value, int n) {
  const HalfVec half = narrow(value);
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(to, (__mmask16)((1u << n) - 1), (__m256i)half);
#else
  for (int i = 0; i < n; ++i) to[i] = half[i];
#endif
}
inline void store(int32_t* to, IntVec value, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_epi32(to, (__mmask16)((1u << n) - 1), (__m512i)value);
#elif defined(__AVX2__)
  _mm256_maskstore_epi32(to, mask_of(n), (__m256i)value);
#else
  for (int i = 0; i < n; ++i) to[i] = value[i];
#endif
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
#elif defined(__AVX2__)
  const __m128 four = _mm256_castps256_ps128((__m256)value) + _mm256_extractf128_ps((__m256)value, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += value[i];
  return total;
#endif
}

// The sums of four vectors, together: one at a time most of the work is moving lanes.
inline void sums_of(const Vec (&value)[4], float* out) {
#if defined(__AVX512F__)
  const auto pairs = [](Vec a, Vec b) {
    return (__m512d)_mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
  };
  const __m512d ab = pairs(value[0], value[1]), cd = pairs(value[2], value[3]);
  const __m512 all = (__m512)_mm512_unpacklo_pd(ab, cd) + (__m512)_mm512_unpackhi_pd(ab, cd);
  const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
  _mm_storeu_ps(out, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_hadd_ps((__m256)value[0], (__m256)value[1]);
  const __m256 all = _mm256_hadd_ps(ab, _mm256_hadd_ps((__m256)value[2], (__m256)value[3]));
  _mm_storeu_ps(out, _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
#else
  for (int i = 0; i < 4; ++i) out[i] = sum_of(value[i]);
#endif
}

inline float largest_of(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)value);
#elif defined(__AVX2__)
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return two[0] > two[1] ? two[0] : two[1];
#else
  float most = value[0];
  for (int i = 1; i < kLanes; ++i) most = value[i] > most ? value[i] : most;
  return most;
#endif
}

// The largest of each of four vectors, likewise.
inline void largest_of(const Vec (&value)[4], float* out) {
#if defined(__AVX512F__)
  const auto pairs = [](Vec a, Vec b) {
    return (__m512d)_mm512_max_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
  };
  const __m512d ab = pairs(value[0], value[1]), cd = pairs(value[2], value[3]);
  const __m512 all = _mm512_max_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd));
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
  const auto pairs = [](Vec a, Vec b) {
    return (__m256d)_mm256_max_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b));
  };
  const __m256d ab = pairs(value[0], value[1]), cd = pairs(value[2], value[3]);
  const __m256 all = _mm256_max_ps((__m256)_mm256_unpacklo_pd(ab, cd), (__m256)_mm256_unpackhi_pd(ab, cd));
  _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  for (int i = 0; i < 4; ++i) out[i] = largest_of(value[i]);
#endif
}

// The first n lanes of `value`, of `rest` the others.
inline Vec first_lanes(int n, Vec value, Vec rest) {
#if defined(__AVX512F__)
  return (Vec)_mm512_mask_mov_ps((__m512)rest, (__mmask16)((1u << n) - 1), (__m512)value);
#elif defined(__AVX2__)
  return (Vec)_mm256_blendv_ps((__m256)rest, (__m256)value, (__m256)mask_of(n));
#else
  for (int i = 0; i < n; ++i) rest[i] = value[i];
  return rest;
#endif
}

inline Vec leaky_relu(Vec z, float slope) {
#if defined(__AVX512F__)
  const __mmask16 scaled = _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NGT_UQ);
  return (Vec)_mm512_mask_mul_ps((__m512)z, scaled, (__m512)z, _mm512_set1_ps(slope));
#elif defined(__AVX2__)
  return (Vec)_mm256_blendv_ps((__m256)z, (__m256)(z * slope), (__m256)z);  // by the sign of z
#else
  return z > 0 ? z : z * slope;
#endif
}

// sum + term in the lanes where value > bound, sum in the others.
inline Vec add_where_above(Vec value, Vec bound, Vec sum, Vec term) {
#if defined(__AVX512F__)
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)value, (__m512)bound, _CMP_GT_OQ);
  return (Vec)_mm512_mask_add_ps((__m512)sum, above, (__m512)sum, (__m512)term);
#else
  return sum + (value > bound ? term : Vec{});
#endif
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
