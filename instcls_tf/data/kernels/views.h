// What random views are made of, for CPUs: cutting out and resizing, colours, blur. The mathematics is that of
// `resizing.py` and `view_layers.py`; pixels are float32 in [0, 255], three to a pixel.

#ifndef INSTCLS_TF_DATA_KERNELS_VIEWS_H_
#define INSTCLS_TF_DATA_KERNELS_VIEWS_H_

#include <cstdint>

namespace instcls::views {

enum Change { kBrightness, kContrast, kSaturation, kHue, kChanges };

// The changes of one view's colours.
struct Colour {
  float factors[kHue];        // of brightness, contrast and saturation; 1 changes nothing
  float turn;                 // of the hue; 1 is the whole circle
  const std::int32_t* order;  // [kChanges]
  bool grey;                  // in the end
};

struct Box {
  std::int32_t top, left, height, width;
};

struct ViewKernels {
  const char* name;

  // Cuts a box out of rows of `row_pixels` pixels, resizes it to a square with a triangle filter that widens with the
  // shrink, and mirrors it if asked to.
  void (*crop)(const std::uint8_t* image, std::int64_t row_pixels, const Box& box, bool mirrored, std::int64_t side,
               float* view);

  void (*colour)(const float* pixels, std::int64_t count, const Colour& colour, float* changed);

  // A Gaussian whose taps end at the radius, with weights that sum up to 1 within the image. `scratch` has the size of
  // the image.
  void (*blur)(const float* image, std::int64_t side, float sigma, std::int64_t radius, float* scratch, float* blurred);
};

extern const ViewKernels kBaselineKernels, kAvx2Kernels, kAvx512Kernels;

}  // namespace instcls::views

#endif  // INSTCLS_TF_DATA_KERNELS_VIEWS_H_
