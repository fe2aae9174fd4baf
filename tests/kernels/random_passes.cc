// All passes of the kernels on random shapes, every array of its own and just as large as streamed_softmax.h says, for
// the compiler's sanitizers. What tiles of any width compute must be what one tile in each of two threads does.
// Usage: random_passes COUNT [short]; `short` makes the momentum one number too small.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "streamed_softmax.h"

namespace {

using instcls::kPanel;
using instcls::Storage;

std::mt19937 generator(1);

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

// Exactly `size` numbers, aligned as those of the operations.
template <typename Number>
class Numbers {
 public:
  explicit Numbers(int64_t size, Number value = Number())
      : size_(size),
        data_(static_cast<Number*>(::operator new(size * sizeof(Number), std::align_val_t(instcls::kAlignment)))) {
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  Numbers(Numbers&& other) : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  ~Numbers() { ::operator delete(data_, std::align_val_t(instcls::kAlignment)); }
  operator Number*() { return data_; }
  const Number& operator[](int64_t i) const { return data_[i]; }
  Number& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return size_; }
  void copy(const Numbers& other) { std::copy_n(other.data_, size_, data_); }

 private:
  int64_t size_;
  Number* data_;
};

Numbers<float> normal(int64_t size) {
  Numbers<float> numbers(size);
  for (int64_t i = 0; i < size; ++i) numbers[i] = std::normal_distribution<float>()(generator);
  return numbers;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// A table [rows, columns] of any kind, `missing` numbers too small.
struct StoredTable {
  StoredTable(int64_t rows, int64_t columns, Storage storage, int64_t missing = 0)
      : columns(columns),
        floats(normal(storage == Storage::kFloat32 ? rows * columns - missing : 0)),
        halves(storage == Storage::kBFloat16 ? rows * columns - missing : 0),
        bytes(storage == Storage::kInt8 ? rows * columns - missing : 0),
        scales(storage == Storage::kInt8 ? rows : 0, 0x1p-5f),
        table(as_table(storage)) {
    const Numbers<float> values = normal(halves.size() + bytes.size());
    for (int64_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(bits_of(values[i]) >> 16);
    for (int64_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, 32 * values[i])));
  }
  StoredTable(StoredTable& other)
      : columns(other.columns),
        floats(other.floats.size()),
        halves(other.halves.size()),
        bytes(other.bytes.size()),
        scales(other.scales.size()),
        table(as_table(other.table.storage)) {
    floats.copy(other.floats), halves.copy(other.halves), bytes.copy(other.bytes), scales.copy(other.scales);
  }

  int64_t size() const { return floats.size() + halves.size() + bytes.size(); }
  float at(int64_t index) const {
    if (floats.size()) return floats[index];
    if (bytes.size()) return scales[index / columns] * static_cast<float>(bytes[index]);
    const uint32_t bits = static_cast<uint32_t>(halves[index]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  // How far a number may be from that of another table where sums differ in their last bits.
  double tolerance(int64_t index) const {
    if (bytes.size()) return 1.001 * scales[index / columns];
    return halves.size() ? 2e-2 : 2e-4;
  }

  int64_t columns;
  Numbers<float> floats;
  Numbers<uint16_t> halves;
  Numbers<int8_t> bytes;
  Numbers<float> scales;
  instcls::Table table;

 private:
  instcls::Table as_table(Storage storage) {
    void* data = storage == Storage::kFloat32    ? static_cast<void*>(floats)
                 : storage == Storage::kBFloat16 ? static_cast<void*>(halves)
                                                 : static_cast<void*>(bytes);
    return {data, storage, storage == Storage::kInt8 ? static_cast<float*>(scales) : nullptr};
  }
};

int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

struct Results {
  Numbers<double> exp_sum;
  Numbers<float> target_sum, own_logit, max_negative, exp_weights, target_weights;
};

// Both passes, with as many threads' shares as lie between the bounds.
Results run(const instcls::Pass& pass, const StoredTable& momentum, float* embeddings, float* expected, int64_t rows,
            const std::vector<int64_t>& bounds) {
  const instcls::Kernels& kernels = instcls::INSTCLS_KERNELS;
  const int64_t padded_rows = pass.num_panels * kPanel, all = padded_rows * pass.padded_size;
  Results results{Numbers<double>(padded_rows),           Numbers<float>(padded_rows), Numbers<float>(padded_rows),
                  Numbers<float>(padded_rows, -INFINITY), Numbers<float>(all),         Numbers<float>(all)};
  const instcls::Sums sums = {results.exp_sum,      results.target_sum,  results.own_logit,
                              results.max_negative, results.exp_weights, results.target_weights};
  for (size_t k = 1; k < bounds.size(); ++k) kernels.forward(pass, bounds[k - 1], bounds[k], sums);

  Numbers<float> target_sum(rows);
  for (int64_t i = 0; i < rows; ++i) target_sum[i] = results.target_sum[i];
  instcls::Update update;
  update.momentum = momentum.table;
  update.embeddings = embeddings, update.expected = expected, update.target_sum = target_sum;
  update.target_scale = 0.1f, update.learning_rate = 0.1f, update.momentum_factor = 0.9f, update.weight_decay = 0.01f;
  update.first_class = 20'000'000, update.seed = 7;
  for (size_t k = 1; k < bounds.size(); ++k) kernels.backward(pass, update, bounds[k - 1], bounds[k]);
  return results;
}

bool close(const char* name, double value, double expected, double tolerance, double scale) {
  if (value == expected || std::abs(value - expected) <= tolerance * scale) return true;
  std::fprintf(stderr, "%s: %g, not %g\n", name, value, expected);
  return false;
}

bool passes(int64_t missing) {
  const instcls::Kernels& kernels = instcls::INSTCLS_KERNELS;
  const int64_t num_local = between(1, 90), rows = between(1, 140), size = between(1, 80), labels = between(0, 3);
  const int64_t padded_size = padded(size, 2 * kernels.lanes), padded_rows = padded(rows, kPanel);
  const auto storage = [] { return static_cast<Storage>(between(0, 2)); };
  StoredTable weights(num_local, size, storage()), momentum(num_local, size, storage(), missing);
  std::vector<int32_t> streamed;
  for (int32_t j = 0; j < num_local; ++j)
    if (between(0, 2)) streamed.push_back(j);
  const bool all = between(0, 1);
  const int64_t num_streamed = all ? num_local : static_cast<int64_t>(streamed.size());

  std::vector<int32_t> row, column;
  std::vector<float> label;
  Numbers<bool> is_own(num_streamed * labels);
  std::vector<bool> has_own(rows);  // a row has one own class at most
  for (int32_t j = 0; j < num_streamed; ++j)
    for (int64_t k = 0; k < labels; ++k) {
      const int64_t i = between(0, rows - 1);
      is_own[label.size()] = !has_own[i] && between(0, 1);
      has_own[i] = has_own[i] || is_own[label.size()];
      row.push_back(i), column.push_back(j), label.push_back(0.5f);
    }

  // Embeddings of unit length, whose logits with any class are at most 1 / tau = 10.
  Numbers<float> embeddings = normal(rows * size), panels(padded_rows * padded_size),
                 expected(padded_rows * padded_size);
  for (int64_t i = 0; i < rows; ++i) {
    float length = 0;
    for (int64_t d = 0; d < size; ++d) length += embeddings[i * size + d] * embeddings[i * size + d];
    for (int64_t d = 0; d < size; ++d) {
      const float value = embeddings[i * size + d] /= std::sqrt(length);
      panels[(i / kPanel * padded_size + d) * kPanel + i % kPanel] = 10 * value;
      expected[i * padded_size + d] = value / static_cast<float>(num_local);
    }
  }
  const Storage products = between(0, 1) ? Storage::kFloat32 : Storage::kBFloat16;
  if (products == Storage::kBFloat16) {
    kernels.pack(panels, padded_rows / kPanel * padded_size, kPanel);
    kernels.pack(expected, padded_rows, padded_size);
  }

  instcls::Pass pass;
  pass.weights = weights.table;
  pass.streamed = all ? nullptr : streamed.data();
  pass.size = size, pass.padded_size = padded_size, pass.num_panels = padded_rows / kPanel;
  pass.tile_classes = between(1, 100);
  pass.products = products;
  pass.panels = panels;
  pass.targets = {row.data(), column.data(), label.data(), is_own, static_cast<int64_t>(label.size())};
  pass.cross_entropy = between(0, 1);
  pass.smallest_norm = 1e-6f;
  pass.shift_logits = pass.shift_targets = nullptr;

  std::vector<float> expected_sums(rows), largest(rows, -INFINITY);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < num_streamed; ++j) {
      const int64_t first = (all ? j : streamed[j]) * size;
      float cosine = 0, squares = 0;
      for (int64_t d = 0; d < size; ++d) {
        cosine += embeddings[i * size + d] * weights.at(first + d);
        squares += weights.at(first + d) * weights.at(first + d);
      }
      const float logit = 10 * cosine / std::sqrt(std::max(squares, 1e-12f));
      largest[i] = std::max(largest[i], logit);
      expected_sums[i] += std::exp(logit);
    }

  const int64_t middle = between(0, num_streamed);
  // As at small temperatures, though these logits are within the range.
  const bool shifted = num_streamed > 0 && between(0, 1);
  Numbers<float> shift_logits(shifted ? padded_rows : 0, -INFINITY),
      shift_targets(shifted ? padded_rows : 0, -INFINITY);
  bool good = true;
  if (shifted) {
    kernels.maxima(pass, 0, middle, shift_logits, shift_targets);
    kernels.maxima(pass, middle, num_streamed, shift_logits, shift_targets);
    for (int64_t i = 0; i < rows; ++i) {
      good &= close("maximum", shift_logits[i], largest[i], products == Storage::kBFloat16 ? 2e-1 : 1e-3, 1);
      expected_sums[i] *= std::exp(-shift_logits[i]);
    }
    for (int64_t i = 0; i < padded_rows; ++i)  // rows without a label, and those that fill up
      if (std::isinf(shift_targets[i])) shift_targets[i] = 0;
    pass.shift_logits = shift_logits, pass.shift_targets = shift_targets;
  }
  StoredTable weights_of_one(weights), momentum_of_one(momentum);
  const Results results = run(pass, momentum, embeddings, expected, rows, {0, num_streamed});
  pass.weights = weights_of_one.table, pass.tile_classes = INT64_MAX;
  const Results of_one = run(pass, momentum_of_one, embeddings, expected, rows, {0, middle, num_streamed});

  // Rounded factors and, where a table keeps them, rounded results; a flipped bit of a result is one part in 128.
  const bool rounded = products == Storage::kBFloat16;
  for (int64_t i = 0; i < rows; ++i)
    good &= close("exp_sum", results.exp_sum[i], expected_sums[i], rounded ? 1e-1 : 1e-3, expected_sums[i]);
  for (int64_t i = 0; i < padded_rows; ++i) {
    good &= close("exp_sum", results.exp_sum[i], of_one.exp_sum[i], 1e-5, of_one.exp_sum[i]);
    good &= close("target_sum", results.target_sum[i], of_one.target_sum[i], 0, 0);  // added up in order of classes
    good &= close("own_logit", results.own_logit[i], of_one.own_logit[i], 1e-5, 10);
    good &= close("max_negative", results.max_negative[i], of_one.max_negative[i], 1e-5, 10);
  }
  for (int64_t k = 0; k < padded_rows * padded_size; ++k) {
    const double scale = 1 + of_one.exp_sum[k / padded_size];
    // Pairs of classes are rounded before they are added up, each for itself.
    good &= close("exp_weights", results.exp_weights[k], of_one.exp_weights[k], 1e-5, scale);
    good &= close("target_weights", results.target_weights[k], of_one.target_weights[k], 1e-5, scale);
  }
  for (int64_t k = 0; k < weights.size(); ++k) {
    good &= close("weights", weights.at(k), weights_of_one.at(k), weights.tolerance(k), 1);
    good &= close("momentum", momentum.at(k), momentum_of_one.at(k), momentum.tolerance(k), 1);
  }
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t missing = argc > 2 && std::strcmp(argv[2], "short") == 0;
  for (int count = std::atoi(argv[1]); count > 0; --count)
    if (!passes(missing)) return 1;
  return 0;
}
