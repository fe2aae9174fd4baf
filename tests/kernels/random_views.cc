// The kernels of views on random shapes, every array just as large as views.h says, for the compiler's sanitizers.
// Usage: random_views COUNT [short]; `short` makes the images that are blurred one number too small.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "views.h"

namespace {

using instcls::views::Box;
using instcls::views::Colour;

std::mt19937 generator(1);

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

void refuse_outside(const std::vector<float>& pixels, const char* what) {
  for (float pixel : pixels)
    if (!(pixel >= -1e-3f && pixel <= 255.001f)) {
      std::fprintf(stderr, "%s: a pixel is %g\n", what, pixel);
      std::exit(1);
    }
}

void crop() {
  const int height = between(1, 60), width = between(1, 60), side = between(1, 40);
  std::vector<std::uint8_t> image(height * width * 3);
  std::generate(image.begin(), image.end(), [] { return between(0, 255); });
  Box box;
  box.height = between(1, height), box.width = between(1, width);
  box.top = between(0, height - box.height), box.left = between(0, width - box.width);
  std::vector<float> view(side * side * 3, -1.0f);
  instcls::views::INSTCLS_KERNELS.crop(image.data(), width, box, between(0, 1), side, view.data());
  refuse_outside(view, "crop");
}

void colour() {
  const int count = between(1, 1000);
  std::vector<float> pixels(count * 3), changed(count * 3, -1.0f);
  std::generate(pixels.begin(), pixels.end(), [] { return uniform(0.0f, 255.0f); });
  std::vector<std::int32_t> order(instcls::views::kChanges);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  Colour colour{{uniform(0, 2), uniform(0, 2), uniform(0, 2)}, uniform(-1, 1), order.data(), between(0, 1) == 1};
  const auto& kernels = instcls::views::INSTCLS_KERNELS;
  kernels.colour(pixels.data(), count, colour, changed.data());
  refuse_outside(changed, "colour");
  kernels.colour(pixels.data(), count, colour, pixels.data());
  if (pixels != changed) {
    std::fprintf(stderr, "colour: other pixels in place\n");
    std::exit(1);
  }
}

void blur(int missing) {
  const int side = between(1, 50), size = side * side * 3;
  std::vector<float> image(size - missing), scratch(size), blurred(size, -1.0f);
  std::generate(image.begin(), image.end(), [] { return uniform(0.0f, 255.0f); });
  instcls::views::INSTCLS_KERNELS.blur(image.data(), side, uniform(0.1f, 2.0f), between(0, 8), scratch.data(),
                                       blurred.data());
  refuse_outside(blurred, "blur");
}

}  // namespace

int main(int count, char** words) {
  const bool is_short = count > 2 && std::string(words[2]) == "short";
  for (int i = 0; i < std::atoi(words[1]); ++i) {
    crop();
    colour();
    blur(is_short ? 1 : 0);
  }
}
