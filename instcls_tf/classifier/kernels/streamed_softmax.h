// The streamed softmax on CPUs: what one worker's passes over its classes read and write. No TensorFlow here.
//
// Shapes use the legend of softmax.py: n streamed classes, B rows of the global batch, D columns, E labels. Rows of the
// batch are padded with zeros to whole panels of kPanel rows, columns to whole vectors; both are cut off again by the
// caller. `Pass::padded_size` is D after padding.
#pragma once

#include <cstdint>

namespace instcls {

constexpr int kPanel = 64;      // rows of the batch that meet a tile of classes at once
constexpr int kAlignment = 64;  // bytes, of every array below that is padded

enum class Storage { kFloat32, kBFloat16, kInt8 };  // of a table; of the factors of products the first two

// A [num_local, D] array of class weights or momentum.
struct Table {
  void* data;
  Storage storage;
  float* scales;  // [num_local] of kInt8, whose numbers they multiply; null otherwise
};

// The labels y_ij > 0 on streamed classes, sorted by class.
struct Targets {
  const int32_t* row;
  const int32_t* column;
  const float* label;
  const bool* is_own;
  int64_t count;
};

// What all passes need.
struct Pass {
  Table weights;
  const int32_t* streamed;  // [n] local classes, or null for all of them in order
  int64_t size;             // D
  int64_t padded_size;
  int64_t num_panels;
  int64_t tile_classes;  // at most so many classes, 1 or more, are a tile, whose arrays are to stay in a cache
  Storage products;
  const float* panels;  // [num_panels, padded_size, kPanel] embeddings / tau, transposed; packed by Kernels::pack
  // [num_panels * kPanel] each, what is subtracted before exp: from all logits, and from those of labels for their own
  // sum. No logit of theirs is larger. Null where exp of every logit is within float32; the maxima pass needs none.
  const float *shift_logits, *shift_targets;
  Targets targets;
  bool cross_entropy;
  float smallest_norm;  // shorter class weights are divided by it instead of by their length
};

// What the forward pass adds up over the classes of one thread.
struct Sums {
  double* exp_sum;        // [num_panels * kPanel]
  float* target_sum;      // the same
  float* own_logit;       // the same
  float* max_negative;    // the same
  float* exp_weights;     // [num_panels * kPanel, padded_size]
  float* target_weights;  // the same
};

// What the backward pass needs besides.
struct Update {
  Table momentum;
  const float* embeddings;  // [B, D]
  const float* expected;    // [num_panels, kPanel, padded_size] embeddings / (tau B S); packed by Kernels::pack
  const float* target_sum;  // [B]
  float target_scale;       // 1 / (tau B)
  float learning_rate, momentum_factor, weight_decay;
  int64_t first_class;  // the id of local class 0
  uint32_t seed;        // of the stochastic rounding
};

// The passes over streamed classes begin .. end-1, compiled for one family of processors.
struct Kernels {
  const char* name;  // "avx512" and the like
  int64_t lanes;     // floats of a vector; padded_size is a multiple of two vectors
  // Rounds a right factor [depth, columns] to bfloat16 in place, in the layout of the kernels, half as long. The depth
  // is a multiple of two vectors.
  void (*pack)(float* factor, int64_t depth, int64_t columns);
  // Largest logits so far of the rows: of all streamed classes, and of the labels; both [num_panels * kPanel].
  void (*maxima)(const Pass&, int64_t begin, int64_t end, float* of_all, float* of_targets);
  void (*forward)(const Pass&, int64_t begin, int64_t end, const Sums&);
  void (*backward)(const Pass&, const Update&, int64_t begin, int64_t end);
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
#endif

}  // namespace instcls
