// The passes of softmax.py as one loop over tiles of classes and panels of the batch, for processors with vectors.
//
// A tile of normalised class weights and a panel's logits stay in the caches from the product that makes the logits to
// the product that uses them up; exp, sums and labels are done there as well. Compiled once for each family of
// processors, with -DINSTCLS_KERNELS=kBaselineKernels and the like; GCC's vector extensions make the instructions.

#include "streamed_softmax.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace instcls {
namespace {

#if defined(__AVX512BF16__)
constexpr char kName[] = "avx512_bf16";
constexpr int kLanes = 16, kVectors = 4;
#elif defined(__AVX512F__)
constexpr char kName[] = "avx512";
constexpr int kLanes = 16, kVectors = 4;
#elif defined(__AVX2__)
constexpr char kName[] = "avx2";
constexpr int kLanes = 8, kVectors = 2;
#elif defined(__aarch64__)
constexpr char kName[] = "neon";
constexpr int kLanes = 4, kVectors = 4;
#else
constexpr char kName[] = "sse";
constexpr int kLanes = 4, kVectors = 2;
#endif
// A block of kBlockRows x kVectors accumulators fills the registers.
constexpr int kBlockRows = 6;
// Below all logits, which are at least -40 without a shift; exp of it is nothing.
constexpr float kMasked = -80.0f;
constexpr float kLowest = -87.0f;  // exp of less is not a normal number

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVector __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint32_t BitVector __attribute__((vector_size(4 * kLanes)));

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
inline BitVector bits_of(Vector value) { return reinterpret_cast<BitVector>(value); }
inline Vector from_bits(BitVector bits) { return reinterpret_cast<Vector>(bits); }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

float sum_of(Vector value) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

class Array {  // of floats, aligned
 public:
  explicit Array(int64_t size)
      : data_(static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t(kAlignment)))) {}
  ~Array() { ::operator delete(data_, std::align_val_t(kAlignment)); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  operator float*() { return data_; }

 private:
  float* data_;
};

// ------------------------------------------------------------------------------------------------------- products

// How a product multiplies. Factors are arrays of words of 32 bits: floats, or pairs of bfloat16 along the depth, which
// is then half as long. All sums are float32.
struct FloatProduct {
  static constexpr bool kPairs = false;
  static Vector add(Vector sum, float left, Vector right) { return sum + left * right; }
};

struct PairProduct {
  static constexpr bool kPairs = true;
#if defined(__AVX512BF16__)
  static Vector add(Vector sum, float left, Vector right) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(left), (__m512bh)right);
  }
#else
  static Vector add(Vector sum, float left, Vector right) {
    uint32_t bits;
    std::memcpy(&bits, &left, sizeof(bits));
    const BitVector lefts = BitVector{} + bits, rights = bits_of(right);
    sum += from_bits(lefts << 16) * from_bits(rights << 16);
    return sum + from_bits(lefts & kHigh) * from_bits(rights & kHigh);
  }
#endif
  // The first value of each pair goes to the lower half of its word; rounded to nearest, ties to even.
  static Vector pair(Vector first, Vector second) {
    return from_bits((rounded(first) >> 16) | (rounded(second) & kHigh));
  }

 private:
  static constexpr uint32_t kHigh = 0xffff0000U;
  static BitVector rounded(Vector value) {
    const BitVector bits = bits_of(value);
    return bits + 0x7fffU + ((bits >> 16) & 1U);
  }
};

struct Factor {  // word (m, k) of a product's left factor
  const float* data;
  int64_t row_stride, column_stride;
};

// out[rows, vectors * kLanes] (+)= left[rows, depth] right[depth, vectors * kLanes], all sums in registers. They start
// from zero, so that no chain of float additions is longer than a tile: sums over 14 million classes keep their digits.
template <typename Product, int rows, int vectors, bool accumulate>
inline __attribute__((always_inline)) void multiply_block(int64_t depth, Factor left, const float* right,
                                                          int64_t right_stride, float* out, int64_t out_stride) {
  Vector sums[rows][vectors];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[m][v] = Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    Vector factors[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) factors[v] = load(right + k * right_stride + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const float factor = left.data[m * left.row_stride + k * left.column_stride];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[m][v] = Product::add(sums[m][v], factor, factors[v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      float* place = out + m * out_stride + v * kLanes;
      store(place, accumulate ? load(place) + sums[m][v] : sums[m][v]);
    }
}

template <typename Product, int vectors, bool accumulate>
void multiply_columns(int64_t num_rows, int64_t depth, Factor left, const float* right, int64_t right_stride,
                      float* out, int64_t out_stride) {
  int64_t m = 0;
  auto block = [&](auto rows) {
    multiply_block<Product, decltype(rows)::value, vectors, accumulate>(
        depth, {left.data + m * left.row_stride, left.row_stride, left.column_stride}, right, right_stride,
        out + m * out_stride, out_stride);
    m += decltype(rows)::value;
  };
  while (m + kBlockRows <= num_rows) block(std::integral_constant<int, kBlockRows>());
  if (m + 4 <= num_rows) block(std::integral_constant<int, 4>());
  if (m + 2 <= num_rows) block(std::integral_constant<int, 2>());
  if (m < num_rows) block(std::integral_constant<int, 1>());
}

// out[num_rows, num_columns] (+)= left[num_rows, depth] right[depth, num_columns], the depth in words; num_columns are
// whole vectors
template <typename Product, bool accumulate>
void multiply(int64_t num_rows, int64_t num_columns, int64_t depth, Factor left, const float* right,
              int64_t right_stride, float* out, int64_t out_stride) {
  int64_t n = 0;
  for (; n + kVectors * kLanes <= num_columns; n += kVectors * kLanes)
    multiply_columns<Product, kVectors, accumulate>(num_rows, depth, left, right + n, right_stride, out + n,
                                                    out_stride);
  for (; n < num_columns; n += kLanes)
    multiply_columns<Product, 1, accumulate>(num_rows, depth, left, right + n, right_stride, out + n, out_stride);
}

// Pairs along a depth that is contiguous stand a vector apart, in blocks of two vectors: word l of a block holds values
// l and kLanes + l. That needs no shuffles, and any order does when both factors have it.
constexpr int kPairBlock = 2 * kLanes;

void pack(float* factor, int64_t depth, int64_t columns) {
  Array block(kPairBlock * columns);
  for (int64_t first = 0; first < depth; first += kPairBlock) {
    std::copy(factor + first * columns, factor + (first + kPairBlock) * columns, block + 0);
    for (int l = 0; l < kLanes; ++l)
      for (int64_t n = 0; n < columns; n += kLanes)
        store(factor + (first / 2 + l) * columns + n,
              PairProduct::pair(load(block + l * columns + n), load(block + (kLanes + l) * columns + n)));
  }
}

// A left factor's rows as pairs, [num_rows, depth / 2]; to == from is allowed.
void pack_rows(const float* from, int64_t num_rows, int64_t depth, float* to) {
  for (int64_t k = 0; k < num_rows * depth; k += kPairBlock)
    store(to + k / 2, PairProduct::pair(load(from + k), load(from + k + kLanes)));
}

// A factor [depth, columns] as pairs of neighbouring rows, [ceil(depth / 2), columns]; to == from is allowed.
void pack_neighbours(const float* from, int64_t depth, int64_t columns, float* to) {
  for (int64_t k = 0; k < depth; k += 2)
    for (int64_t n = 0; n < columns; n += kLanes) {
      const Vector second = k + 1 < depth ? load(from + (k + 1) * columns + n) : Vector{};
      store(to + k / 2 * columns + n, PairProduct::pair(load(from + k * columns + n), second));
    }
}

// ------------------------------------------------------------------------------------------------------ exponential

// exp to about one unit in the last place for |x| < 87: 2^n p(x - n ln 2) with |x - n ln 2| <= ln(2) / 2.
inline Vector exponential(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
  const Vector shifted = x * 1.44269504f + kRound;
  const Vector n = shifted - kRound;
  const Vector f = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vector p = f * 1.38888889e-3f + 8.33333333e-3f;
  p = p * f + 4.16666667e-2f;
  p = p * f + 1.66666667e-1f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return p * from_bits((bits_of(shifted) << 23) + 0x3f800000U);  // 2^n: the bits of kRound are shifted out
}

inline float exponential(float x) { return exponential(Vector{} + x)[0]; }

// exp(logit - shift), which is at most 1 and may be as good as nothing. NaN stays.
inline Vector exponential(Vector logit, Vector shift) {
  const Vector x = logit - shift, lowest = Vector{} + kLowest;
  return exponential(x < lowest ? lowest : x);
}

inline float exponential(float logit, float shift) { return exponential(Vector{} + logit, Vector{} + shift)[0]; }

// ----------------------------------------------------------------------------------------------------------- tables

inline float from_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Rounds to one of the two neighbours, to the nearer one with the higher probability: small steps are not lost, and the
// mean is the value itself. `random` holds 16 random bits.
inline uint16_t to_bfloat16(float value, uint32_t random) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + random) >> 16);
}

// A hash of 32 bits, the same as `_hash` of stochastic_rounding.py: independent of threads, tiles and workers.
inline uint32_t random_bits(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  x ^= x >> 16;
  return x;
}

// Of rows of int8, as in int8_rows.py: a row's largest number is at most kMost, and at least kLeast unless it stands
// still; kRoundUp carries into the exponent what is above kMost / 64, whose exponent kMostExponent is.
constexpr float kLeast = 48, kMost = 127;
constexpr uint32_t kInfinity = 0x7f800000U, kRoundUp = 0x1ffffU, kMostExponent = 6, kSmallestExponent = 127 - 100;

inline int64_t local_class(const Pass& pass, int64_t column) {
  return pass.streamed == nullptr ? column : pass.streamed[column];
}

// A local class of a table as floats, zeros up to padded_size.
void read_class(const Table& table, const Pass& pass, int64_t index, float* to) {
  const int64_t size = pass.size;
  if (table.storage == Storage::kFloat32) {
    std::memcpy(to, static_cast<const float*>(table.data) + index * size, size * sizeof(float));
  } else if (table.storage == Storage::kBFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(table.data) + index * size;
    for (int64_t d = 0; d < size; ++d) to[d] = from_bfloat16(from[d]);
  } else {
    const int8_t* from = static_cast<const int8_t*>(table.data) + index * size;
    const float scale = table.scales[index];
    for (int64_t d = 0; d < size; ++d) to[d] = scale * static_cast<float>(from[d]);
  }
  std::fill(to + size, to + pass.padded_size, 0.0f);
}

// The scale of a row of int8 that had the scale `before`, as `next_scales` of int8_rows.py has it.
float next_scale(const float* values, int64_t size, float before) {
  uint32_t bits = 0;  // of the largest absolute value; NaN is above all
  for (int64_t d = 0; d < size; ++d) {
    uint32_t own;
    std::memcpy(&own, values + d, sizeof(own));
    bits = std::max(bits, own & 0x7fffffffU);
  }
  float largest, smallest;
  std::memcpy(&largest, &bits, sizeof(largest));
  if (bits >= kInfinity || (before > 0 && kLeast * before <= largest && largest <= kMost * before))
    return bits >= kInfinity ? largest : before;
  bits = std::max((bits + kRoundUp) >> 23, kSmallestExponent + kMostExponent) - kMostExponent;
  bits <<= 23;
  std::memcpy(&smallest, &bits, sizeof(smallest));
  return smallest;
}

// `random(d)` are the bits of column d.
template <typename Random>
void write_int8(const float* from, int64_t size, float scale, Random random, int8_t* to) {
  const float inverse = 1.0f / scale;
  for (int64_t d = 0; d < size; ++d) {
    const float value = from[d] * inverse;  // exact: the scale is a power of two
    int32_t below = static_cast<int32_t>(value);
    below -= static_cast<float>(below) > value;
    const float uniform = static_cast<float>(static_cast<int32_t>(random(d) >> 8)) * 0x1p-24f;
    to[d] = static_cast<int8_t>(below + (uniform < value - static_cast<float>(below)));
  }
}

// `part` keeps the random bits of class weights and momentum apart.
void write_class(const Table& table, const Pass& pass, const Update& update, int64_t index, uint32_t part,
                 const float* from) {
  const int64_t size = pass.size;
  if (table.storage == Storage::kFloat32) {
    std::memcpy(static_cast<float*>(table.data) + index * size, from, size * sizeof(float));
    return;
  }
  const uint32_t first = static_cast<uint32_t>((update.first_class + index) * size);
  const uint32_t key = random_bits(2 * update.seed + part);
  const auto random = [=](int64_t d) { return random_bits((first + static_cast<uint32_t>(d)) ^ key); };
  if (table.storage == Storage::kBFloat16) {
    uint16_t* to = static_cast<uint16_t*>(table.data) + index * size;
    for (int64_t d = 0; d < size; ++d) to[d] = to_bfloat16(from[d], random(d) & 0xffffU);
  } else {
    int8_t* to = static_cast<int8_t*>(table.data) + index * size;
    const float scale = table.scales[index] = next_scale(from, size, table.scales[index]);
    if (std::isfinite(scale))
      write_int8(from, size, scale, random, to);
    else
      std::fill(to, to + size, int8_t{1});  // what is read is not finite either
  }
}

// w^ of the tile's classes, [count, padded_size], and 1 / |w|.
void read_directions(const Pass& pass, int64_t begin, int64_t count, float* directions, float* inverse_norms) {
  for (int64_t j = 0; j < count; ++j) {
    float* weight = directions + j * pass.padded_size;
    read_class(pass.weights, pass, local_class(pass, begin + j), weight);
    Vector squares{};
    for (int64_t d = 0; d < pass.padded_size; d += kLanes) squares += load(weight + d) * load(weight + d);
    inverse_norms[j] = 1.0f / std::sqrt(std::max(sum_of(squares), pass.smallest_norm * pass.smallest_norm));
    for (int64_t d = 0; d < pass.padded_size; d += kLanes) store(weight + d, load(weight + d) * inverse_norms[j]);
  }
}

// ----------------------------------------------------------------------------------------------------------- passes

// Calls body(begin, count, first, last) for tiles of the streamed classes: `count` of them, and the labels on them.
template <typename Body>
void for_each_tile(const Pass& pass, int64_t begin, int64_t end, Body body) {
  const int32_t *columns = pass.targets.column, *behind = columns + pass.targets.count;
  const int64_t width = std::min(pass.tile_classes, end - begin);
  for (int64_t first = std::lower_bound(columns, behind, begin) - columns; begin < end; begin += width) {
    const int64_t count = std::min(width, end - begin);
    const int64_t last = std::lower_bound(columns + first, behind, begin + count) - columns;
    body(begin, count, first, last);
    first = last;
  }
}

// Calls body(j, i, t) for the labels t of a tile and a panel: class begin + j, row i of the panel.
template <typename Body>
void for_each_target(const Targets& targets, int64_t first, int64_t last, int64_t begin, int64_t panel, Body body) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t i = targets.row[t] - panel * kPanel;
    if (0 <= i && i < kPanel) body(targets.column[t] - begin, i, t);
  }
}

// The class weights of one tile.
class Tile {
 public:
  Tile(const Pass& pass, int64_t capacity)
      : directions(capacity * pass.padded_size),
        inverse_norms(capacity),
        left_(pairs(pass) * capacity * pass.padded_size / 2),
        right_(pairs(pass) * (capacity + 1) / 2 * pass.padded_size) {}

  template <typename Product>
  void read(const Pass& pass, int64_t begin, int64_t count) {
    read_directions(pass, begin, count, directions, inverse_norms);
    if (Product::kPairs) {
      pack_rows(directions, count, pass.padded_size, left_);
      pack_neighbours(directions, count, pass.padded_size, right_);
    }
  }

  // logits[count, kPanel] of a panel
  template <typename Product>
  void multiply_by_panel(const Pass& pass, int64_t count, int64_t panel, float* logits) {
    const int64_t depth = Product::kPairs ? pass.padded_size / 2 : pass.padded_size;
    multiply<Product, false>(count, kPanel, depth, {Product::kPairs ? left_ : directions, depth, 1},
                             pass.panels + panel * depth * kPanel, kPanel, logits, kPanel);
  }

  // sums[kPanel, padded_size] += exponentials[count, kPanel]^T directions; the exponentials are used up
  template <typename Product>
  void add_weighted(const Pass& pass, int64_t count, float* exponentials, float* sums) {
    if (Product::kPairs) pack_neighbours(exponentials, count, kPanel, exponentials);
    multiply<Product, true>(kPanel, pass.padded_size, Product::kPairs ? (count + 1) / 2 : count,
                            {exponentials, 1, kPanel}, Product::kPairs ? right_ : directions, pass.padded_size, sums,
                            pass.padded_size);
  }

  Array directions;  // [count, padded_size] w^
  Array inverse_norms;

 private:
  static int64_t pairs(const Pass& pass) { return pass.products == Storage::kBFloat16; }

  Array left_, right_;  // directions as pairs, where products need them
};

// to[size] += factor * from[size]
inline void add_row(float* to, float factor, const float* from, int64_t size) {
  for (int64_t d = 0; d < size; ++d) to[d] += factor * from[d];
}

// exp of a label's logit for the sum over labels
template <bool shifted>
inline float target_exponential(const Pass& pass, float logit, int64_t row) {
  return shifted ? exponential(logit, pass.shift_targets[row]) : exponential(logit);
}

// Labels of a tile and a panel into the sums. Own classes are masked in `logits`, for the maximum of the others.
template <bool shifted>
void add_targets(const Pass& pass, const Sums& sums, int64_t first, int64_t last, int64_t begin, int64_t panel,
                 const float* directions, float* logits) {
  for_each_target(pass.targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
    const int64_t row = panel * kPanel + i;
    const float logit = logits[j * kPanel + i], label = pass.targets.label[t];
    const float term = label * (pass.cross_entropy ? logit : target_exponential<shifted>(pass, logit, row));
    sums.target_sum[row] += term;
    add_row(sums.target_weights + row * pass.padded_size, pass.cross_entropy ? label : term,
            directions + j * pass.padded_size, pass.padded_size);
    if (pass.targets.is_own[t]) sums.own_logit[row] = logit;
  });
  // After all are read: a class may be a row's own and, wrongly given, its hard negative as well.
  for_each_target(pass.targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
    if (pass.targets.is_own[t]) logits[j * kPanel + i] = shifted ? -std::numeric_limits<float>::infinity() : kMasked;
  });
}

// Turns logits into exponentials; adds up the panel's exponentials and finds its largest logits. `shift` is the
// panel's.
template <bool shifted>
void exponentiate_and_sum(int64_t count, const float* shift, float* logits, double* exp_sum, float* max_negative) {
  for (int i = 0; i < kPanel; i += kVectors * kLanes) {
    Vector sums[kVectors], maxima[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = Vector{}, maxima[v] = load(max_negative + i + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        float* place = logits + j * kPanel + i + v * kLanes;
        const Vector logit = load(place);
        const Vector value = shifted ? exponential(logit, load(shift + i + v * kLanes)) : exponential(logit);
        maxima[v] = larger(maxima[v], logit);
        sums[v] += value;
        store(place, value);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      store(max_negative + i + v * kLanes, maxima[v]);
      for (int lane = 0; lane < kLanes; ++lane) exp_sum[i + v * kLanes + lane] += sums[v][lane];
    }
  }
}

template <typename Product>
void maxima_pass(const Pass& pass, int64_t begin, int64_t end, float* of_all, float* of_targets) {
  const int64_t width = std::min(pass.tile_classes, end - begin);
  Tile tile(pass, width);
  Array logits(width * kPanel);
  for_each_tile(pass, begin, end, [&](int64_t begin, int64_t count, int64_t first, int64_t last) {
    tile.read<Product>(pass, begin, count);
    for (int64_t panel = 0; panel < pass.num_panels; ++panel) {
      tile.multiply_by_panel<Product>(pass, count, panel, logits);
      for (int64_t i = 0; i < kPanel; i += kLanes) {
        float* place = of_all + panel * kPanel + i;
        Vector maxima = load(place);
        for (int64_t j = 0; j < count; ++j) maxima = larger(maxima, load(logits + j * kPanel + i));
        store(place, maxima);
      }
      for_each_target(pass.targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t) {
        float& maximum = of_targets[panel * kPanel + i];
        maximum = std::max(maximum, logits[j * kPanel + i]);
      });
    }
  });
}

template <typename Product, bool shifted>
void forward_pass(const Pass& pass, int64_t begin, int64_t end, const Sums& sums) {
  const int64_t width = std::min(pass.tile_classes, end - begin), padded = pass.padded_size;
  Tile tile(pass, width);
  Array logits(width * kPanel);
  const Targets& targets = pass.targets;
  for_each_tile(pass, begin, end, [&](int64_t begin, int64_t count, int64_t first, int64_t last) {
    tile.read<Product>(pass, begin, count);
    for (int64_t panel = 0; panel < pass.num_panels; ++panel) {
      tile.multiply_by_panel<Product>(pass, count, panel, logits);
      add_targets<shifted>(pass, sums, first, last, begin, panel, tile.directions, logits);
      double* exp_sum = sums.exp_sum + panel * kPanel;
      const float* shift = shifted ? pass.shift_logits + panel * kPanel : nullptr;
      exponentiate_and_sum<shifted>(count, shift, logits, exp_sum, sums.max_negative + panel * kPanel);
      for_each_target(targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
        if (!targets.is_own[t]) return;
        const float logit = sums.own_logit[panel * kPanel + i];
        const float own = shifted ? exponential(logit, shift[i]) : exponential(logit);
        logits[j * kPanel + i] = own;
        exp_sum[i] += own;
      });
      tile.add_weighted<Product>(pass, count, logits, sums.exp_weights + panel * kPanel * padded);
    }
  });
}

// The gradient of the tile's weights through w^ = w / |w|, and SGD with momentum and decay as in optimizer.py.
void move_classes(const Pass& pass, const Update& update, int64_t begin, int64_t count, const float* directions,
                  const float* inverse_norms, const float* gradients) {
  const int64_t padded = pass.padded_size;
  Array weight(padded), momentum(padded);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t index = local_class(pass, begin + j);
    const float *direction = directions + j * padded, *gradient = gradients + j * padded;
    read_class(pass.weights, pass, index, weight);
    read_class(update.momentum, pass, index, momentum);
    Vector products{};
    for (int64_t d = 0; d < padded; d += kLanes) products += load(gradient + d) * load(direction + d);
    const float along = sum_of(products);  // only the part across w^ moves the cosine
    for (int64_t d = 0; d < padded; d += kLanes) {
      const Vector across = (load(gradient + d) - along * load(direction + d)) * inverse_norms[j];
      const Vector moved =
          update.momentum_factor * load(momentum + d) + (across + update.weight_decay * load(weight + d));
      store(momentum + d, moved);
      store(weight + d, load(weight + d) - update.learning_rate * moved);
    }
    write_class(pass.weights, pass, update, index, 0, weight);
    write_class(update.momentum, pass, update, index, 1, momentum);
  }
}

template <typename Product, bool shifted>
void backward_pass(const Pass& pass, const Update& update, int64_t begin, int64_t end) {
  const int64_t width = std::min(pass.tile_classes, end - begin), padded = pass.padded_size;
  Tile tile(pass, width);
  Array logits(width * kPanel), gradients(width * padded);
  const Targets& targets = pass.targets;
  for_each_tile(pass, begin, end, [&](int64_t begin, int64_t count, int64_t first, int64_t last) {
    tile.read<Product>(pass, begin, count);
    std::fill(gradients + 0, gradients + count * padded, 0.0f);
    for (int64_t panel = 0; panel < pass.num_panels; ++panel) {
      tile.multiply_by_panel<Product>(pass, count, panel, logits);
      for_each_target(targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
        const int64_t row = panel * kPanel + i;
        float share = targets.label[t];  // q_ij
        if (!pass.cross_entropy)
          share *= target_exponential<shifted>(pass, logits[j * kPanel + i], row) / update.target_sum[row];
        add_row(gradients + j * padded, -share * update.target_scale, update.embeddings + row * pass.size, pass.size);
      });
      const float* shift = shifted ? pass.shift_logits + panel * kPanel : nullptr;
      for (int64_t k = 0; k < count * kPanel; k += kLanes) {
        const Vector logit = load(logits + k);
        store(logits + k, shifted ? exponential(logit, load(shift + k % kPanel)) : exponential(logit));
      }
      if (Product::kPairs) pack_rows(logits, count, kPanel, logits);
      const int64_t depth = Product::kPairs ? kPanel / 2 : kPanel;
      multiply<Product, true>(count, padded, depth, {logits, depth, 1}, update.expected + panel * depth * padded,
                              padded, gradients, padded);
    }
    move_classes(pass, update, begin, count, tile.directions, tile.inverse_norms, gradients);
  });
}

// Calls body(product, shifted) with a value of the type of product, and std::true_type or std::false_type.
template <typename Body>
void as_compiled(const Pass& pass, Body body) {
  const auto of_product = [&](auto product) {
    if (pass.shift_logits == nullptr)
      body(product, std::false_type());
    else
      body(product, std::true_type());
  };
  if (pass.products == Storage::kFloat32)
    of_product(FloatProduct());
  else
    of_product(PairProduct());
}

void maxima(const Pass& pass, int64_t begin, int64_t end, float* of_all, float* of_targets) {
  (pass.products == Storage::kFloat32 ? maxima_pass<FloatProduct> : maxima_pass<PairProduct>)(pass, begin, end, of_all,
                                                                                              of_targets);
}

void forward(const Pass& pass, int64_t begin, int64_t end, const Sums& sums) {
  as_compiled(pass, [&](auto product, auto shifted) {
    forward_pass<decltype(product), decltype(shifted)::value>(pass, begin, end, sums);
  });
}

void backward(const Pass& pass, const Update& update, int64_t begin, int64_t end) {
  as_compiled(pass, [&](auto product, auto shifted) {
    backward_pass<decltype(product), decltype(shifted)::value>(pass, update, begin, end);
  });
}

}  // namespace

extern const Kernels INSTCLS_KERNELS{kName, kLanes, pack, maxima, forward, backward};

}  // namespace instcls
