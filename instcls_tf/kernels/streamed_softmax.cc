// The passes of softmax.py as one loop over tiles of classes and panels of the batch, for processors with vectors.
//
// A tile of normalised class weights and a panel's logits stay in the caches from the product that makes the logits to the
// product that uses them up; exp, sums and labels are done there as well. Compiled once for each family of processors,
// with -DINSTCLS_KERNELS=kBaselineKernels and the like; GCC's vector extensions make the instructions.

#include "streamed_softmax.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

namespace instcls {
namespace {

#if defined(__AVX512F__)
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
constexpr int kTileFloats = 192 * 128, kMaxTile = 768;  // of a tile's class weights; classes of a tile
constexpr float kMasked = -80.0f;  // below all logits, which are at least -40; exp of it is nothing

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVector __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t IntVector __attribute__((vector_size(4 * kLanes)));

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
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

struct Factor {  // element (m, k) of a product's left factor
  const float* data;
  int64_t row_stride, column_stride;
};

// out[rows, vectors * kLanes] (+)= left[rows, depth] right[depth, vectors * kLanes], all sums in registers
template <int rows, int vectors, bool accumulate>
inline __attribute__((always_inline)) void multiply_block(int64_t depth, Factor left, const float* right,
                                                          int64_t right_stride, float* out, int64_t out_stride) {
  Vector sums[rows][vectors];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[m][v] = accumulate ? load(out + m * out_stride + v * kLanes) : Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    Vector factors[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) factors[v] = load(right + k * right_stride + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const float factor = left.data[m * left.row_stride + k * left.column_stride];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[m][v] += factor * factors[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(out + m * out_stride + v * kLanes, sums[m][v]);
}

template <int vectors, bool accumulate>
void multiply_columns(int64_t num_rows, int64_t depth, Factor left, const float* right, int64_t right_stride, float* out,
                      int64_t out_stride) {
  int64_t m = 0;
  auto block = [&](auto rows) {
    multiply_block<decltype(rows)::value, vectors, accumulate>(
        depth, {left.data + m * left.row_stride, left.row_stride, left.column_stride}, right, right_stride,
        out + m * out_stride, out_stride);
    m += decltype(rows)::value;
  };
  while (m + kBlockRows <= num_rows) block(std::integral_constant<int, kBlockRows>());
  if (m + 4 <= num_rows) block(std::integral_constant<int, 4>());
  if (m + 2 <= num_rows) block(std::integral_constant<int, 2>());
  if (m < num_rows) block(std::integral_constant<int, 1>());
}

// out[num_rows, num_columns] (+)= left[num_rows, depth] right[depth, num_columns]; num_columns are whole vectors
template <bool accumulate>
void multiply(int64_t num_rows, int64_t num_columns, int64_t depth, Factor left, const float* right,
              int64_t right_stride, float* out, int64_t out_stride) {
  int64_t n = 0;
  for (; n + kVectors * kLanes <= num_columns; n += kVectors * kLanes)
    multiply_columns<kVectors, accumulate>(num_rows, depth, left, right + n, right_stride, out + n, out_stride);
  for (; n < num_columns; n += kLanes)
    multiply_columns<1, accumulate>(num_rows, depth, left, right + n, right_stride, out + n, out_stride);
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
  IntVector bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + 0x3f800000;  // 2^n: the exponent's bias, and the bits of kRound shifted out
  Vector scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

inline float exponential(float x) { return exponential(Vector{} + x)[0]; }

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

// A hash of 32 bits, the same as `storage.random_bits` in Python: independent of threads, tiles and workers.
inline uint32_t random_bits(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  x ^= x >> 16;
  return x;
}

inline int64_t local_class(const Pass& pass, int64_t column) {
  return pass.streamed == nullptr ? column : pass.streamed[column];
}

// Row `index` of a table as floats, zeros up to padded_size.
void read_row(const Table& table, const Pass& pass, int64_t index, float* to) {
  const int64_t size = pass.size;
  if (table.storage == Storage::kFloat32) {
    std::memcpy(to, static_cast<const float*>(table.data) + index * size, size * sizeof(float));
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(table.data) + index * size;
    for (int64_t d = 0; d < size; ++d) to[d] = from_bfloat16(from[d]);
  }
  std::fill(to + size, to + pass.padded_size, 0.0f);
}

// `part` keeps the random bits of class weights and momentum apart.
void write_row(const Table& table, const Pass& pass, const Update& update, int64_t index, uint32_t part,
               const float* from) {
  const int64_t size = pass.size;
  if (table.storage == Storage::kFloat32) {
    std::memcpy(static_cast<float*>(table.data) + index * size, from, size * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(table.data) + index * size;
  const uint32_t first = static_cast<uint32_t>((update.first_class + index) * size);
  const uint32_t key = random_bits(2 * update.seed + part);
  for (int64_t d = 0; d < size; ++d)
    to[d] = to_bfloat16(from[d], random_bits((first + static_cast<uint32_t>(d)) ^ key) & 0xffffU);
}

// w^ of the tile's classes, [count, padded_size], and 1 / |w|.
void read_directions(const Pass& pass, int64_t begin, int64_t count, float* directions, float* inverse_norms) {
  for (int64_t j = 0; j < count; ++j) {
    float* row = directions + j * pass.padded_size;
    read_row(pass.rows, pass, local_class(pass, begin + j), row);
    Vector squares{};
    for (int64_t d = 0; d < pass.padded_size; d += kLanes) squares += load(row + d) * load(row + d);
    inverse_norms[j] = 1.0f / std::sqrt(std::max(sum_of(squares), 1e-24f));
    for (int64_t d = 0; d < pass.padded_size; d += kLanes) store(row + d, load(row + d) * inverse_norms[j]);
  }
}

// ----------------------------------------------------------------------------------------------------------- passes

int64_t tile_classes(const Pass& pass) {
  const int64_t fits = std::min<int64_t>(kTileFloats / pass.padded_size, kMaxTile);
  return std::max<int64_t>(fits / kBlockRows * kBlockRows, 4 * kBlockRows);
}

// Calls body(j, i, t) for the labels t of a tile and a panel: class begin + j, row i of the panel.
template <typename Body>
void for_each_target(const Targets& targets, int64_t first, int64_t last, int64_t begin, int64_t panel, Body body) {
  for (int64_t t = first; t < last; ++t) {
    const int64_t i = targets.row[t] - panel * kPanel;
    if (0 <= i && i < kPanel) body(targets.column[t] - begin, i, t);
  }
}

// logits[count, kPanel] of a tile and a panel
void make_logits(const Pass& pass, int64_t count, int64_t panel, const float* directions, float* logits) {
  multiply<false>(count, kPanel, pass.size, {directions, pass.padded_size, 1},
                  pass.panels + panel * pass.size * kPanel, kPanel, logits, kPanel);
}

// to[size] += factor * from[size]
inline void add_row(float* to, float factor, const float* from, int64_t size) {
  for (int64_t d = 0; d < size; ++d) to[d] += factor * from[d];
}

// Labels of a tile and a panel into the sums. Own classes are masked in `logits`, for the maximum of the others.
void add_targets(const Pass& pass, const Sums& sums, int64_t first, int64_t last, int64_t begin, int64_t panel,
                 const float* directions, float* logits) {
  for_each_target(pass.targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
    const int64_t row = panel * kPanel + i;
    const float logit = logits[j * kPanel + i], label = pass.targets.label[t];
    const float term = pass.cross_entropy ? label * logit : label * exponential(logit);
    sums.target_sum[row] += term;
    add_row(sums.target_weights + row * pass.padded_size, pass.cross_entropy ? label : term,
            directions + j * pass.padded_size, pass.padded_size);
    if (pass.targets.is_own[t]) sums.own_logit[row] = logit;
  });
  // After all are read: a class may be a row's own and, wrongly given, its hard negative as well.
  for_each_target(pass.targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
    if (pass.targets.is_own[t]) logits[j * kPanel + i] = kMasked;
  });
}

// Turns logits into exponentials; adds up the panel's exponentials and finds its largest logits.
void exponentiate_and_sum(int64_t count, float* logits, double* exp_sum, float* max_negative) {
  for (int i = 0; i < kPanel; i += kVectors * kLanes) {
    Vector sums[kVectors], maxima[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = Vector{}, maxima[v] = load(max_negative + i + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        float* place = logits + j * kPanel + i + v * kLanes;
        const Vector logit = load(place), value = exponential(logit);
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

void forward(const Pass& pass, int64_t begin, int64_t end, const Sums& sums) {
  const int64_t tile = tile_classes(pass), padded = pass.padded_size;
  Array directions(tile * padded), inverse_norms(tile), logits(tile * kPanel);
  const Targets& targets = pass.targets;
  int64_t first = std::lower_bound(targets.column, targets.column + targets.count, begin) - targets.column;
  for (; begin < end; begin += tile) {
    const int64_t count = std::min(tile, end - begin);
    const int64_t last =
        std::lower_bound(targets.column + first, targets.column + targets.count, begin + count) - targets.column;
    read_directions(pass, begin, count, directions, inverse_norms);
    for (int64_t panel = 0; panel < pass.num_panels; ++panel) {
      make_logits(pass, count, panel, directions, logits);
      add_targets(pass, sums, first, last, begin, panel, directions, logits);
      double* exp_sum = sums.exp_sum + panel * kPanel;
      exponentiate_and_sum(count, logits, exp_sum, sums.max_negative + panel * kPanel);
      for_each_target(targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
        if (!targets.is_own[t]) return;
        const float own = exponential(sums.own_logit[panel * kPanel + i]);
        logits[j * kPanel + i] = own;
        exp_sum[i] += own;
      });
      multiply<true>(kPanel, padded, count, {logits, 1, kPanel}, directions, padded,
                     sums.exp_weights + panel * kPanel * padded, padded);
    }
    first = last;
  }
}

// The gradient of the tile's rows through w^ = w / |w|, and SGD with momentum and decay as in optimizer.py.
void move_rows(const Pass& pass, const Update& update, int64_t begin, int64_t count, const float* directions,
               const float* inverse_norms, const float* gradients) {
  const int64_t padded = pass.padded_size;
  Array row(padded), momentum(padded);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t index = local_class(pass, begin + j);
    const float *direction = directions + j * padded, *gradient = gradients + j * padded;
    read_row(pass.rows, pass, index, row);
    read_row(update.momentum, pass, index, momentum);
    Vector products{};
    for (int64_t d = 0; d < padded; d += kLanes) products += load(gradient + d) * load(direction + d);
    const float along = sum_of(products);  // only the part across w^ moves the cosine
    for (int64_t d = 0; d < padded; d += kLanes) {
      const Vector across = (load(gradient + d) - along * load(direction + d)) * inverse_norms[j];
      const Vector moved = update.momentum_factor * load(momentum + d) + (across + update.weight_decay * load(row + d));
      store(momentum + d, moved);
      store(row + d, load(row + d) - update.learning_rate * moved);
    }
    write_row(pass.rows, pass, update, index, 0, row);
    write_row(update.momentum, pass, update, index, 1, momentum);
  }
}

void backward(const Pass& pass, const Update& update, int64_t begin, int64_t end) {
  const int64_t tile = tile_classes(pass), padded = pass.padded_size;
  Array directions(tile * padded), inverse_norms(tile), logits(tile * kPanel), gradients(tile * padded);
  const Targets& targets = pass.targets;
  int64_t first = std::lower_bound(targets.column, targets.column + targets.count, begin) - targets.column;
  for (; begin < end; begin += tile) {
    const int64_t count = std::min(tile, end - begin);
    const int64_t last =
        std::lower_bound(targets.column + first, targets.column + targets.count, begin + count) - targets.column;
    read_directions(pass, begin, count, directions, inverse_norms);
    std::fill(gradients + 0, gradients + count * padded, 0.0f);
    for (int64_t panel = 0; panel < pass.num_panels; ++panel) {
      make_logits(pass, count, panel, directions, logits);
      for_each_target(targets, first, last, begin, panel, [&](int64_t j, int64_t i, int64_t t) {
        const int64_t row = panel * kPanel + i;
        float share = targets.label[t];  // q_ij
        if (!pass.cross_entropy) share *= exponential(logits[j * kPanel + i]) / update.target_sum[row];
        add_row(gradients + j * padded, -share * update.target_scale, update.embeddings + row * pass.size, pass.size);
      });
      for (int64_t k = 0; k < count * kPanel; k += kLanes) store(logits + k, exponential(load(logits + k)));
      multiply<true>(count, padded, kPanel, {logits, kPanel, 1}, update.expected + panel * kPanel * padded, padded,
                     gradients, padded);
    }
    move_rows(pass, update, begin, count, directions, inverse_norms, gradients);
    first = last;
  }
}

}  // namespace

extern const Kernels INSTCLS_KERNELS{kName, kLanes, forward, backward};

}  // namespace instcls
