// A 3x3 convolution as F(2 x 4, 3 x 3) of Winograd's minimal filtering (Lavin and Gray,
// https://arxiv.org/abs/1509.09308): 24 products for 8 outputs, where the definition takes 72. Along the height the
// points are 0, 1, -1 and infinity, along the width 0, +-5/8, +-3/2 and infinity: of the pairs that were tried the one
// with the smallest error, which is 1.1 (128 channels) to 1.7 times (16) that of a direct float32 convolution, as root
// mean square. F(4 x 4) would take 18 products and make 2.4 times its error with 32 channels.
#pragma once

#include <memory>

#include "vec.h"
#include "winograd/winograd.h"

namespace onp {
namespace {

constexpr int kPanelVecs = kConvPanel / kLanes;
// Tiles whose sums stay in registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif

constexpr float kA = 0.625f, kB = 1.5f;
constexpr float kAA = kA * kA, kBB = kB * kB;

// The transform of a row of six inputs, of a column of four; and of the sums back to four and two outputs.
inline void transform_row(const Vec (&d)[kTapsWide], Vec (&v)[kTapsWide]) {
  const Vec near = d[4] - kBB * d[2], far = d[4] - kAA * d[2];
  const Vec near_odd = kA * (d[3] - kBB * d[1]), far_odd = kB * (d[3] - kAA * d[1]);
  v[0] = kAA * kBB * d[0] + (d[4] - (kAA + kBB) * d[2]);
  v[1] = near + near_odd, v[2] = near - near_odd;
  v[3] = far + far_odd, v[4] = far - far_odd;
  v[5] = kAA * kBB * d[1] + (d[5] - (kAA + kBB) * d[3]);
}

inline void outputs_of_row(const Vec (&m)[kTapsWide], Vec (&y)[kTileWidth]) {
  const Vec near = m[1] + m[2], far = m[3] + m[4], near_odd = m[1] - m[2], far_odd = m[3] - m[4];
  y[0] = m[0] + (near + far);
  y[1] = kA * near_odd + kB * far_odd;
  y[2] = kAA * near + kBB * far;
  y[3] = m[5] + (kAA * kA * near_odd + kBB * kB * far_odd);
}

// One panel of output channels. Written eight input channels at a time: single cache lines that lie a power of two
// apart push each other out.
void conv_filters(const ConvFilters& op, int64_t panel) {
  constexpr int kTogether = 8;
  constexpr double a = kA, b = kB, aa = a * a, bb = b * b;
  constexpr double na = 1 / (2 * aa * (aa - bb)), nb = 1 / (2 * bb * (bb - aa));
  constexpr double high[kTapsHigh][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  constexpr double wide[kTapsWide][3] = {{1 / (aa * bb), 0, 0}, {na, a * na, aa * na},  {na, -a * na, aa * na},
                                         {nb, b * nb, bb * nb}, {nb, -b * nb, bb * nb}, {0, 0, 1}};
  float read[kTogether][3][3][kConvPanel], made[kTaps][kTogether][kConvPanel];
  for (int64_t first = 0; first < op.inputs; first += kTogether) {
    for (int k = 0; k < kConvPanel; ++k) {
      const float* filter = op.from + ((panel * kConvPanel + k) * op.inputs + first) * 9;
      for (int c = 0; c < kTogether; ++c)
        for (int i = 0; i < 9; ++i) read[c][i / 3][i % 3][k] = filter[c * 9 + i];
    }
    for (int c = 0; c < kTogether; ++c) {
      const auto& g = read[c];
      double half[kTapsHigh][3][kConvPanel];
      for (int i = 0; i < kTapsHigh; ++i)
        for (int s = 0; s < 3; ++s)
          for (int k = 0; k < kConvPanel; ++k)
            half[i][s][k] = high[i][0] * g[0][s][k] + high[i][1] * g[1][s][k] + high[i][2] * g[2][s][k];
      for (int i = 0; i < kTapsHigh; ++i)
        for (int j = 0; j < kTapsWide; ++j)
          for (int k = 0; k < kConvPanel; ++k)
            made[i * kTapsWide + j][c][k] = static_cast<float>(wide[j][0] * half[i][0][k] + wide[j][1] * half[i][1][k] +
                                                               wide[j][2] * half[i][2][k]);
    }
    for (int tap = 0; tap < kTaps; ++tap) {
      float* to = op.to + (tap * op.outputs + panel * kConvPanel) * op.inputs + first * kConvPanel;
      std::memcpy(to, made[tap], sizeof made[tap]);
    }
  }
}

// Where a block of tiles keeps its transformed inputs [tap, tile, C] and sums [tap, tile, K]. Between taps there is a
// gap, or what belongs to one tile would lie a power of two apart and push itself out of the cache.
struct ConvScratch {
  std::unique_ptr<float[]> memory;
  int64_t size = 0;

  float* of(int64_t wanted) {
    if (wanted > size) memory.reset(new float[wanted]()), size = wanted;
    return memory.get();
  }
};

struct Tile {
  int64_t image, row, column;  // of its first output
};

inline Tile tile_at(const Conv& op, int64_t number) {
  const int64_t column = number % op.tiles_wide(), rest = number / op.tiles_wide();
  return {rest / op.tiles_high(), rest % op.tiles_high() * kTileHeight, column * kTileWidth};
}

inline void transform_tile(const Conv& op, const Tile& tile, const float* zeros, float* to, int64_t tap_stride) {
  const float* from[kTaps];
  for (int i = 0; i < kTapsHigh; ++i) {
    const int64_t row = tile.row + i - op.padding;
    for (int j = 0; j < kTapsWide; ++j) {
      const int64_t column = tile.column + j - op.padding;
      const bool inside = row >= 0 && row < op.height && column >= 0 && column < op.width;
      from[i * kTapsWide + j] =
          inside ? op.x + ((tile.image * op.height + row) * op.width + column) * op.inputs : zeros;
    }
  }
  for (int64_t c = 0; c < op.inputs; c += kLanes) {
    Vec v[kTapsHigh][kTapsWide];
    for (int i = 0; i < kTapsHigh; ++i) {
      Vec d[kTapsWide];
      for (int j = 0; j < kTapsWide; ++j) d[j] = load(from[i * kTapsWide + j] + c);
      transform_row(d, v[i]);
    }
    for (int j = 0; j < kTapsWide; ++j) {
      store(to + j * tap_stride + c, v[0][j] - v[2][j]);
      store(to + (kTapsWide + j) * tap_stride + c, v[1][j] + v[2][j]);
      store(to + (2 * kTapsWide + j) * tap_stride + c, v[2][j] - v[1][j]);
      store(to + (3 * kTapsWide + j) * tap_stride + c, v[1][j] - v[3][j]);
    }
  }
}

// sums[tile, 16] of one panel, for kTileRows tiles.
inline void multiply(const float* inputs, const float* filters, int64_t channels, float* sums, int64_t sum_stride) {
  Vec sum[kTileRows][kPanelVecs] = {};
  for (int64_t c = 0; c < channels; ++c) {
    Vec filter[kPanelVecs];
    for (int v = 0; v < kPanelVecs; ++v) filter[v] = load(filters + c * kConvPanel + v * kLanes);
    for (int t = 0; t < kTileRows; ++t) {
      const Vec input = broadcast(inputs[t * channels + c]);
      for (int v = 0; v < kPanelVecs; ++v) sum[t][v] += input * filter[v];
    }
  }
  for (int t = 0; t < kTileRows; ++t)
    for (int v = 0; v < kPanelVecs; ++v) store(sums + t * sum_stride + v * kLanes, sum[t][v]);
}

inline void finish_tile(const Conv& op, const Tile& tile, const float* sums, int64_t tap_stride) {
  const int64_t height = op.out_height(), width = op.out_width();
  for (int64_t k = 0; k < op.outputs; k += kLanes) {
    Vec half[kTileHeight][kTapsWide];
    for (int j = 0; j < kTapsWide; ++j) {
      Vec m[kTapsHigh];
      for (int i = 0; i < kTapsHigh; ++i) m[i] = load(sums + (i * kTapsWide + j) * tap_stride + k);
      half[0][j] = m[0] + (m[1] + m[2]);
      half[1][j] = (m[1] - m[2]) - m[3];
    }
    const Vec scale = op.scale ? load(op.scale + k) : broadcast(1.0f);
    const Vec shift = op.shift ? load(op.shift + k) : Vec{};
    for (int i = 0; i < kTileHeight && tile.row + i < height; ++i) {
      Vec y[kTileWidth];
      outputs_of_row(half[i], y);
      const int64_t first = ((tile.image * height + tile.row + i) * width + tile.column) * op.outputs + k;
      for (int j = 0; j < kTileWidth && tile.column + j < width; ++j) {
        // A pruned channel is 0 even where its sum is not a finite number.
        Vec value = (scale == 0 ? Vec{} : scale * y[j]) + shift;
        if (op.added) value += load(op.added + first + j * op.outputs);
        store(op.out + first + j * op.outputs, op.relu ? (value < 0 ? Vec{} : value) : value);
      }
    }
  }
}

// The tiles [first, last), at most `room` of them at a time.
void conv_tiles(const Conv& op, int64_t first, int64_t last, int64_t room) {
  static thread_local ConvScratch scratch;
  const int64_t padded = (room + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t input_tap = padded * op.inputs + kConvPanel, sum_tap = padded * op.outputs + kConvPanel;
  float* zeros = scratch.of(op.inputs + kTaps * (input_tap + sum_tap));
  std::memset(zeros, 0, op.inputs * sizeof(float));
  float* inputs = zeros + op.inputs;
  float* sums = inputs + kTaps * input_tap;
  for (int64_t start = first; start < last; start += room) {
    const int64_t count = last - start < room ? last - start : room;
    for (int64_t t = 0; t < count; ++t) {
      transform_tile(op, tile_at(op, start + t), zeros, inputs + t * op.inputs, input_tap);
    }
    for (int tap = 0; tap < kTaps; ++tap) {
      for (int64_t k = 0; k < op.outputs; k += kConvPanel) {
        const float* filters = op.filters + (tap * op.outputs + k) * op.inputs;
        for (int64_t t = 0; t < count; t += kTileRows) {
          multiply(inputs + tap * input_tap + t * op.inputs, filters, op.inputs,
                   sums + tap * sum_tap + t * op.outputs + k, op.outputs);
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) finish_tile(op, tile_at(op, start + t), sums + t * op.outputs, sum_tap);
  }
}

}  // namespace
}  // namespace onp
