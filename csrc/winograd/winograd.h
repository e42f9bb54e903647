// A 3x3 convolution by Winograd's minimal filtering: the contract of the CPU loops (tiles.h). Raw pointers only.
//
// Letters: N images of H x W pixels, C input and K output channels, both multiples of kConvPanel. Channels lie side by
// side: x is [N, H, W, C], results [N, H', W', K] with H' = H + 2 * padding - 2, and W' alike.
#pragma once

#include <cstdint>

namespace onp {

constexpr int kTileHeight = 2, kTileWidth = 4;                          // outputs made together
constexpr int kTapsHigh = kTileHeight + 2, kTapsWide = kTileWidth + 2;  // inputs they read
constexpr int kTaps = kTapsHigh * kTapsWide;                            // products they take, of 72 that they stand for
constexpr int kConvPanel = 16;                                          // output channels that lie side by side

// to[tap, k / 16, c, k % 16] = the transform of the filter from[k, c] ([K, C, 3, 3]).
struct ConvFilters {
  const float* from;
  float* to;
  int64_t inputs, outputs;
};

// out = scale * conv(x) + shift + added, the first 0 where scale is, and no less than 0 if `relu`. Sums are made in an
// order that depends on the sizes alone, so results repeat bit for bit, whatever the number of threads and the other
// images.
struct Conv {
  const float* x;
  const float* filters;  // as ConvFilters makes them
  const float* scale;    // [K], or null: ones
  const float* shift;    // [K], or null: zeros
  const float* added;    // [N, H', W', K], or null
  float* out;
  int64_t images, height, width, inputs, outputs, padding;
  bool relu;

  int64_t out_height() const { return height + 2 * padding - 2; }
  int64_t out_width() const { return width + 2 * padding - 2; }
  int64_t tiles_high() const { return (out_height() + kTileHeight - 1) / kTileHeight; }
  int64_t tiles_wide() const { return (out_width() + kTileWidth - 1) / kTileWidth; }
  int64_t tiles() const { return images * tiles_high() * tiles_wide(); }
};

void run_cpu(const ConvFilters& op, int threads);
void run_cpu(const Conv& op, int threads);

}  // namespace onp
