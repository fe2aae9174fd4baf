// The kernels of views.h. Compiled once for each family of processors, under the name INSTCLS_KERNELS; loops are
// written so that compilers make vectors of them.

#include "views.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace instcls::views {
namespace {

constexpr std::int64_t kChannels = 3;
constexpr float kLuma[kChannels] = {0.299f, 0.587f, 0.114f};
constexpr std::int64_t kBlock = 256;  // pixels, whose channels lie in the first-level cache

typedef float FourFloats __attribute__((vector_size(16), aligned(4)));

float clipped(float value) { return std::min(std::max(value, 0.0f), 255.0f); }

template <typename Number>
float as_float(Number number) {
  return static_cast<float>(number);
}

// sums[i] = sum over the taps of weights[tap] * from[tap * stride + i]; four taps at a time, so that sums are rarely
// written.
template <typename Number>
void weighted_sums(const Number* from, std::int64_t stride, const float* weights, std::int64_t taps,
                   std::int64_t length, float* sums) {
  std::fill(sums, sums + length, 0.0f);
  std::int64_t tap = 0;
  for (; tap + 4 <= taps; tap += 4) {
    const Number *a = from + tap * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    const float wa = weights[tap], wb = weights[tap + 1], wc = weights[tap + 2], wd = weights[tap + 3];
    for (std::int64_t i = 0; i < length; ++i)
      sums[i] += wa * as_float(a[i]) + wb * as_float(b[i]) + wc * as_float(c[i]) + wd * as_float(d[i]);
  }
  for (; tap < taps; ++tap) {
    const Number* a = from + tap * stride;
    const float wa = weights[tap];
    for (std::int64_t i = 0; i < length; ++i) sums[i] += wa * as_float(a[i]);
  }
}

// ------------------------------------------------------------------------------------------------------------- crop

// For each of the output's places the input's that it is a weighted mean of.
struct Filter {
  // The triangle of `tf.image.resize(antialias=True)`: where the input is smaller it is that of bilinear interpolation.
  Filter(std::int64_t input, std::int64_t output) : first(output), count(output), begin(output) {
    const float step = static_cast<float>(input) / static_cast<float>(output);
    const float reach = std::max(step, 1.0f);
    for (std::int64_t place = 0; place < output; ++place) {
      const float centre = (static_cast<float>(place) + 0.5f) * step;
      const auto low = std::max<std::int64_t>(0, static_cast<std::int64_t>(std::ceil(centre - reach - 0.5f)));
      const auto high = std::min<std::int64_t>(input - 1, static_cast<std::int64_t>(std::floor(centre + reach - 0.5f)));
      first[place] = low;
      count[place] = high - low + 1;
      begin[place] = static_cast<std::int64_t>(weights.size());
      float sum = 0.0f;
      for (std::int64_t at = low; at <= high; ++at) {
        weights.push_back(std::max(0.0f, 1.0f - std::abs((static_cast<float>(at) + 0.5f - centre) / reach)));
        sum += weights.back();
      }
      for (std::int64_t tap = 0; tap < count[place]; ++tap) weights[begin[place] + tap] /= sum;
    }
  }

  std::vector<std::int64_t> first, count, begin;
  std::vector<float> weights;
};

void crop(const std::uint8_t* image, std::int64_t row_pixels, const Box& box, bool mirrored, std::int64_t side,
          float* view) {
  const Filter rows(box.height, side), columns(box.width, side);
  const std::int64_t length = box.width * kChannels;
  std::vector<float> row(length + 1, 0.0f);  // four numbers are read at a time, of the last pixel one too many
  for (std::int64_t y = 0; y < side; ++y) {
    weighted_sums(image + ((box.top + rows.first[y]) * row_pixels + box.left) * kChannels, row_pixels * kChannels,
                  rows.weights.data() + rows.begin[y], rows.count[y], length, row.data());
    for (std::int64_t x = 0; x < side; ++x) {
      FourFloats sum = {0.0f, 0.0f, 0.0f, 0.0f};
      const float* from = row.data() + columns.first[x] * kChannels;
      const float* weights = columns.weights.data() + columns.begin[x];
      for (std::int64_t tap = 0; tap < columns.count[x]; ++tap)
        sum += weights[tap] * *reinterpret_cast<const FourFloats*>(from + tap * kChannels);
      float* to = view + (y * side + (mirrored ? side - 1 - x : x)) * kChannels;
      to[0] = sum[0];
      to[1] = sum[1];
      to[2] = sum[2];
    }
  }
}

// ----------------------------------------------------------------------------------------------------------- colour

// Several changes as one: a pixel's distance from its grey is scaled, and its grey becomes scale * grey + offset.
struct Affine {
  Affine(const Colour& colour, std::int64_t from, std::int64_t to, float mean_grey) {
    for (std::int64_t place = from; place < to; ++place) {
      const std::int32_t change = colour.order[place];
      if (change == kHue) continue;
      const float factor = colour.factors[change];
      distance *= factor;
      if (change == kSaturation) continue;
      // Contrast leaves the mean where it is by then, brightness leaves 0.
      const float fixed = change == kContrast ? scale * mean_grey + offset : 0.0f;
      scale *= factor;
      offset = factor * offset + (1.0f - factor) * fixed;
    }
  }

  float of(float value, float grey) const { return clipped(distance * (value - grey) + scale * grey + offset); }

  float distance = 1.0f, scale = 1.0f, offset = 0.0f;
};

struct Block {
  void read(const float* pixels, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      red[i] = pixels[3 * i];
      green[i] = pixels[3 * i + 1];
      blue[i] = pixels[3 * i + 2];
    }
  }

  void write(float* pixels, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      pixels[3 * i] = red[i];
      pixels[3 * i + 1] = green[i];
      pixels[3 * i + 2] = blue[i];
    }
  }

  void recolour(const Affine& affine, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float grey = kLuma[0] * red[i] + kLuma[1] * green[i] + kLuma[2] * blue[i];
      red[i] = affine.of(red[i], grey);
      green[i] = affine.of(green[i], grey);
      blue[i] = affine.of(blue[i], grey);
    }
  }

  // Turns the hue in HSV; value and saturation stay. Each channel falls from the value to the minimum and back, in
  // sixths of the circle, with a phase of its own.
  void turn_hue(float turn, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float r = red[i], g = green[i], b = blue[i];
      const float value = std::max(std::max(r, g), b);
      const float chroma = value - std::min(std::min(r, g), b);
      const float inverse = 1.0f / std::max(chroma, 1e-6f);  // of a grey pixel any hue is right
      const float from_red = (g - b) * inverse, from_green = 2.0f + (b - r) * inverse;
      const float from_blue = 4.0f + (r - g) * inverse;
      const float hue = (value == r ? from_red : value == g ? from_green : from_blue) + 6.0f * turn;
      red[i] = channel(value, chroma, hue + 5.0f);
      green[i] = channel(value, chroma, hue + 3.0f);
      blue[i] = channel(value, chroma, hue + 1.0f);
    }
  }

  void to_grey(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
      red[i] = green[i] = blue[i] = clipped(kLuma[0] * red[i] + kLuma[1] * green[i] + kLuma[2] * blue[i]);
  }

  float sum_of_grey(std::int64_t count) const {
    float sum = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) sum += kLuma[0] * red[i] + kLuma[1] * green[i] + kLuma[2] * blue[i];
    return sum;
  }

  static float channel(float value, float chroma, float phase) {
    phase -= 6.0f * std::floor(phase * (1.0f / 6.0f));
    return value - chroma * std::min(std::max(2.0f - std::abs(phase - 2.0f), 0.0f), 1.0f);
  }

  float red[kBlock], green[kBlock], blue[kBlock];
};

void colour(const float* pixels, std::int64_t count, const Colour& colour, float* changed) {
  Block block;
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t size = std::min(kBlock, count - begin);
    block.read(pixels + begin * kChannels, size);
    sum += block.sum_of_grey(size);
  }
  const std::int64_t hue = std::find(colour.order, colour.order + kChanges, kHue) - colour.order;
  const Affine before(colour, 0, hue, static_cast<float>(sum / static_cast<double>(count)));
  sum = 0.0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t size = std::min(kBlock, count - begin);
    block.read(pixels + begin * kChannels, size);
    block.recolour(before, size);
    if (colour.turn != 0.0f) block.turn_hue(colour.turn, size);
    sum += block.sum_of_grey(size);
    block.write(changed + begin * kChannels, size);
  }
  const Affine after(colour, hue, kChanges, static_cast<float>(sum / static_cast<double>(count)));
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t size = std::min(kBlock, count - begin);
    block.read(changed + begin * kChannels, size);
    block.recolour(after, size);
    if (colour.grey) block.to_grey(size);
    block.write(changed + begin * kChannels, size);
  }
}

// ------------------------------------------------------------------------------------------------------------- blur

void blur(const float* image, std::int64_t side, float sigma, std::int64_t radius, float* scratch, float* blurred) {
  const std::int64_t taps = 2 * radius + 1, row = side * kChannels;
  std::vector<float> gaussian(taps), weights(taps);
  for (std::int64_t tap = 0; tap < taps; ++tap) {
    const float distance = static_cast<float>(tap - radius);
    gaussian[tap] = std::exp(-distance * distance / (2.0f * sigma * sigma));
  }
  // Of the taps that lie within the image around a place: the first one, and how many; with weights that sum up to 1.
  const auto within = [&](std::int64_t place, std::int64_t* first) {
    *first = std::max<std::int64_t>(0, radius - place);
    const std::int64_t count = std::min(taps, radius + side - place) - *first;
    float sum = 0.0f;
    for (std::int64_t tap = 0; tap < count; ++tap) sum += gaussian[*first + tap];
    for (std::int64_t tap = 0; tap < count; ++tap) weights[tap] = gaussian[*first + tap] / sum;
    return count;
  };
  std::int64_t first;
  for (std::int64_t y = 0; y < side; ++y) {
    const std::int64_t count = within(y, &first);
    weighted_sums(image + (y - radius + first) * row, row, weights.data(), count, row, scratch + y * row);
  }
  const std::int64_t inner_begin = std::min(radius, side), inner_end = std::max(inner_begin, side - radius);
  for (std::int64_t y = 0; y < side; ++y) {
    const float* from = scratch + y * row;
    float* to = blurred + y * row;
    for (std::int64_t x = 0; x < side; ++x) {
      if (x == inner_begin && inner_end > inner_begin) {
        const std::int64_t count = within(x, &first);
        weighted_sums(from, kChannels, weights.data(), count, (inner_end - inner_begin) * kChannels,
                      to + x * kChannels);
        x = inner_end - 1;
        continue;
      }
      const std::int64_t count = within(x, &first);
      weighted_sums(from + (x - radius + first) * kChannels, kChannels, weights.data(), count, kChannels,
                    to + x * kChannels);
    }
  }
}

}  // namespace

#define INSTCLS_NAME_OF(kernels) #kernels
#define INSTCLS_NAME(kernels) INSTCLS_NAME_OF(kernels)
extern const ViewKernels INSTCLS_KERNELS = {INSTCLS_NAME(INSTCLS_KERNELS), crop, colour, blur};

}  // namespace instcls::views
