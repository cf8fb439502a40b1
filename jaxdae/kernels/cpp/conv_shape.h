// The geometry of a convolution.

#pragma once

#include <algorithm>
#include <vector>

namespace {

struct Geometry {
  long batch, image[2], kernel[2], stride, low[2], grid[2], channels, outputs;
  bool turned;  // the matrix lies as (taps, outputs, channels), the last tap first
  long taps() const { return kernel[0] * kernel[1]; }
  // Where the matrix has the first tap, and its steps from a tap, a channel, an output to the next.
  long first() const { return turned ? (taps() - 1) * channels * outputs : 0; }
  long tap_step() const { return (turned ? -1 : 1) * channels * outputs; }
  long channel_step() const { return turned ? 1 : outputs; }
  long output_step() const { return turned ? channels : 1; }
  // Of images of one pixel the three sides are plain products, and positions far too few.
  bool dense() const {
    return taps() == 1 && !turned && image[0] * image[1] * grid[0] * grid[1] == 1 && low[0] == 0 &&
           low[1] == 0;
  }
};

// Positions that the same taps reach: (i, j) is pixel `step * (i, j) + first` of what is written.
// Of what is read, a run is pixels beside each other: `columns` of them, the first of them
// `source_step * (i, j) + (down, right)`, and their taps.
struct Run {
  long down, right, columns, tap, tap_step;
};
struct Phase {
  long first[2], step, size[2], source_step;
  std::vector<Run> runs;
};

Phase gathered(const Geometry& g) {
  Phase phase{{0, 0}, 1, {g.grid[0], g.grid[1]}, g.stride, {}};
  for (long i = 0; i < g.kernel[0]; ++i)
    phase.runs.push_back({i - g.low[0], -g.low[1], g.kernel[1], i * g.kernel[1], 1});
  return phase;
}

std::vector<Phase> scattered(const Geometry& g) {
  const long s = g.stride;
  std::vector<Phase> phases;
  for (long row = 0; row < std::min(s, g.image[0]); ++row)
    for (long column = 0; column < std::min(s, g.image[1]); ++column) {
      const long rows = (g.image[0] - row + s - 1) / s,
                 columns = (g.image[1] - column + s - 1) / s;
      Phase phase{{row, column}, s, {rows, columns}, 1, {}};
      // The taps that reach it differ by the stride; the last of them takes the leftmost pixel.
      const long i0 = ((row + g.low[0]) % s + s) % s, j0 = ((column + g.low[1]) % s + s) % s;
      const long reach = j0 < g.kernel[1] ? (g.kernel[1] - 1 - j0) / s + 1 : 0;
      const long last = j0 + (reach - 1) * s;
      for (long i = i0; i < g.kernel[0] && reach; i += s)
        phase.runs.push_back({(row + g.low[0] - i) / s, (column + g.low[1] - last) / s, reach,
                              i * g.kernel[1] + last, -s});
      phases.push_back(phase);
    }
  return phases;
}

}  // namespace
