// TensorFlow operations around the passes of streamed_softmax.h: memory, threads, and which processor this is.

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "streamed_softmax.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace instcls {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::Var;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;

constexpr float kSmallestTemperature = 0.025f;  // exponentials of all logits are within float32

// Those that this processor can run, the fastest first.
const std::vector<const Kernels*>& usable() {
  static const auto* kernels = [] {
    auto* list = new std::vector<const Kernels*>;
#if defined(__x86_64__)
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512bf16")) list->push_back(&kAvx512Bf16Kernels);
      list->push_back(&kAvx512Kernels);
    }
    if (v3) list->push_back(&kAvx2Kernels);
#endif
    list->push_back(&kBaselineKernels);
    return list;
  }();
  return *kernels;
}

Status find_kernels(OpKernelConstruction* context, const Kernels** kernels) {
  std::string name;
  TF_RETURN_IF_ERROR(context->GetAttr("kernels", &name));
  for (const Kernels* candidate : usable())
    if (name.empty() || name == candidate->name) {
      *kernels = candidate;
      return tensorflow::OkStatus();
    }
  return InvalidArgument("this processor cannot run the kernels ", name);
}

Status storage_of(const Tensor& tensor, Storage* storage) {
  switch (tensor.dtype()) {
    case tensorflow::DT_FLOAT:
      *storage = Storage::kFloat32;
      return tensorflow::OkStatus();
    case tensorflow::DT_BFLOAT16:
      *storage = Storage::kBFloat16;
      return tensorflow::OkStatus();
    case tensorflow::DT_INT8:
      *storage = Storage::kInt8;
      return tensorflow::OkStatus();
    default:
      return InvalidArgument("class weights must be float32, bfloat16 or int8");
  }
}

// The variables of a table: its numbers, and the scales of its rows where it has any.
struct Stored {
  Status find(OpKernelContext* context, int values_input, const char* scales_name) {
    TF_RETURN_IF_ERROR(
        tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, values_input), &values));
    int start, stop;
    TF_RETURN_IF_ERROR(context->op_kernel().InputRange(scales_name, &start, &stop));
    if (start == stop) return tensorflow::OkStatus();
    return tensorflow::LookupResource(context, tensorflow::HandleFromInput(context, start), &scales);
  }

  Status as_table(Table* table) const {
    const Tensor& tensor = *values->tensor();
    TF_RETURN_IF_ERROR(storage_of(tensor, &table->storage));
    table->data = tensor.data();
    table->scales = nullptr;
    if (table->storage != Storage::kInt8) return tensorflow::OkStatus();
    if (scales == nullptr || scales->tensor()->dtype() != tensorflow::DT_FLOAT || tensor.dims() != 2 ||
        scales->tensor()->NumElements() != tensor.dim_size(0))
      return InvalidArgument("rows of int8 must have one scale each, in float32");
    table->scales = static_cast<float*>(scales->tensor()->data());
    return tensorflow::OkStatus();
  }

  // Nothing where there are no scales.
  template <typename Lock>
  std::unique_ptr<Lock> lock_scales() const {
    return scales == nullptr ? nullptr : std::make_unique<Lock>(*scales->mu());
  }

  tensorflow::core::RefCountPtr<Var> values, scales;
};

// Makes sure that writing to the variable changes no tensor that was read from it before.
Status own_alone(OpKernelContext* context, Var* variable) {
  if (variable->copy_on_read_mode.load()) return tensorflow::OkStatus();
  Tensor* tensor = variable->tensor();
  if (!tensor->RefCountIsOne()) {
    Tensor copy;
    TF_RETURN_IF_ERROR(context->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
    std::memcpy(copy.data(), tensor->data(), tensor->TotalBytes());
    *tensor = copy;
  }
  variable->copy_on_read_mode.store(true);
  return tensorflow::OkStatus();
}

// The attributes that all passes have.
struct Settings {
  Status read(OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(find_kernels(context, &kernels));
    TF_RETURN_IF_ERROR(context->GetAttr("temperature", &temperature));
    TF_RETURN_IF_ERROR(context->GetAttr("cross_entropy", &cross_entropy));
    TF_RETURN_IF_ERROR(context->GetAttr("smallest_norm", &smallest_norm));
    TF_RETURN_IF_ERROR(context->GetAttr("tile_classes", &tile_classes));
    tensorflow::DataType dtype;
    TF_RETURN_IF_ERROR(context->GetAttr("products_dtype", &dtype));
    products = dtype == tensorflow::DT_FLOAT ? Storage::kFloat32 : Storage::kBFloat16;
    return tensorflow::OkStatus();
  }

  const Kernels* kernels;
  float temperature;
  bool cross_entropy;
  float smallest_norm;
  int64_t tile_classes;
  Storage products;
};

// A worker's inputs, the same for all passes, padded and transposed for the kernels.
class Batch {
 public:
  Status read(OpKernelContext* context, const Settings& settings, const Stored& weights) {
    const Tensor& stored = *weights.values->tensor();
    TF_RETURN_IF_ERROR(weights.as_table(&pass.weights));
    const Tensor &streamed = context->input(1), &embeddings = context->input(2), &row = context->input(3);
    const TensorShape& table = stored.shape();
    if (table.dims() != 2 || embeddings.dims() != 2 || embeddings.dim_size(1) != table.dim_size(1))
      return InvalidArgument("class weights ", table.DebugString(), " and embeddings ",
                             embeddings.shape().DebugString(), " must be [n, D] and [B, D]");
    if (table.dim_size(1) == 0) return InvalidArgument("class weights must have at least one column");
    if (streamed.dims() > 1) return InvalidArgument("streamed classes must be a vector, or a scalar for all");
    for (int input = 3; input < 7; ++input)
      if (context->input(input).NumElements() != row.NumElements())
        return InvalidArgument("the four parts of the targets must be equally long");
    batch_rows = embeddings.dim_size(0);
    num_local = table.dim_size(0);
    const bool all = streamed.dims() == 0;  // a scalar stands for all classes
    num_streamed = all ? num_local : streamed.dim_size(0);
    pass.streamed = all ? nullptr : streamed.flat<int32_t>().data();
    pass.size = table.dim_size(1);
    pass.padded_size = padded(pass.size, 2 * settings.kernels->lanes);
    pass.num_panels = padded(batch_rows, kPanel) / kPanel;
    pass.tile_classes = settings.tile_classes;
    pass.cross_entropy = settings.cross_entropy;
    pass.smallest_norm = settings.smallest_norm;
    pass.products = settings.products;
    pass.targets = {row.flat<int32_t>().data(), context->input(4).flat<int32_t>().data(),
                    context->input(5).flat<float>().data(), context->input(6).flat<bool>().data(), row.NumElements()};
    TF_RETURN_IF_ERROR(check());
    Tensor* panels = keep();
    TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, {padded_rows() * pass.padded_size}, panels));
    transpose(embeddings.flat<float>().data(), 1.0f / settings.temperature, panels->flat<float>().data());
    if (pass.products == Storage::kBFloat16)
      settings.kernels->pack(panels->flat<float>().data(), pass.num_panels * pass.padded_size, kPanel);
    pass.panels = panels->flat<float>().data();
    pass.shift_logits = pass.shift_targets = nullptr;
    return tensorflow::OkStatus();
  }

  // The inputs 7 and 8 of forward and backward, empty where the temperature needs no shift.
  Status read_shift(OpKernelContext* context, const Settings& settings) {
    const Tensor &logits = context->input(7), &targets = context->input(8);
    if (logits.NumElements() == 0 && targets.NumElements() == 0 && settings.temperature >= kSmallestTemperature)
      return tensorflow::OkStatus();
    if (logits.NumElements() != batch_rows || targets.NumElements() != batch_rows)
      return InvalidArgument("a temperature below ", kSmallestTemperature,
                             " needs a shift, of one element per row of the batch");
    TF_RETURN_IF_ERROR(padded_copy(context, logits, &pass.shift_logits));
    return padded_copy(context, targets, &pass.shift_targets);
  }

  int64_t padded_rows() const { return pass.num_panels * kPanel; }

  // `size` zeros, which live as long as the batch
  Status allocate(OpKernelContext* context, int64_t size, float** data) {
    Tensor* tensor = keep();
    TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, {size}, tensor));
    *data = tensor->flat<float>().data();
    std::fill(*data, *data + size, 0.0f);
    return tensorflow::OkStatus();
  }

  Pass pass;
  int64_t batch_rows, num_local, num_streamed;

 private:
  static int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

  Status padded_copy(OpKernelContext* context, const Tensor& from, const float** to) {
    float* copy;
    TF_RETURN_IF_ERROR(allocate(context, padded_rows(), &copy));
    std::copy_n(from.flat<float>().data(), batch_rows, copy);
    *to = copy;
    return tensorflow::OkStatus();
  }

  Tensor* keep() {
    tensors_.push_back(std::make_unique<Tensor>());
    return tensors_.back().get();
  }

  // What the kernels index with must be in range: they do not look.
  Status check() const {
    const Targets& targets = pass.targets;
    for (int64_t t = 0; t < targets.count; ++t)
      if (targets.row[t] < 0 || targets.row[t] >= batch_rows || targets.column[t] < 0 ||
          targets.column[t] >= num_streamed || (t > 0 && targets.column[t] < targets.column[t - 1]))
        return InvalidArgument("targets must be sorted by column and lie within the batch and the streamed classes");
    for (int64_t j = 0; pass.streamed != nullptr && j < num_streamed; ++j)
      if (pass.streamed[j] < 0 || pass.streamed[j] >= num_local)
        return InvalidArgument("streamed class ", pass.streamed[j], " is not one of ", num_local);
    return tensorflow::OkStatus();
  }

  void transpose(const float* embeddings, float scale, float* panels) const {
    for (int64_t panel = 0; panel < pass.num_panels; ++panel)
      for (int64_t d = 0; d < pass.padded_size; ++d)
        for (int64_t i = 0; i < kPanel; ++i) {
          const int64_t row = panel * kPanel + i;
          *panels++ = row < batch_rows && d < pass.size ? embeddings[row * pass.size + d] * scale : 0.0f;
        }
  }

  std::vector<std::unique_ptr<Tensor>> tensors_;
};

// What a pass that moves nothing reads: the class weights, locked as long as this lives, and the batch that meets them.
struct Reading {
  Status open(OpKernelContext* context, const Settings& settings) {
    TF_RETURN_IF_ERROR(weights.find(context, 0, "weight_scales"));
    lock = std::make_unique<tensorflow::tf_shared_lock>(*weights.values->mu());
    lock_scales = weights.lock_scales<tensorflow::tf_shared_lock>();
    return batch.read(context, settings, weights);
  }

  Stored weights;  // outlives the locks
  std::unique_ptr<tensorflow::tf_shared_lock> lock, lock_scales;
  Batch batch;
};

// Runs body(chunk, begin, end) on equal shares of the streamed classes, one per thread.
template <typename Body>
void on_all_threads(OpKernelContext* context, int64_t total, int64_t num_chunks, Body body) {
  auto* workers = context->device()->tensorflow_cpu_worker_threads()->workers;
  using Scheduling = tensorflow::thread::ThreadPool::SchedulingParams;
  using Strategy = tensorflow::thread::ThreadPool::SchedulingStrategy;
  workers->ParallelFor(num_chunks, Scheduling(Strategy::kFixedBlockSize, absl::nullopt, 1),
                       [&](int64_t first, int64_t last) {
                         for (int64_t chunk = first; chunk < last; ++chunk)
                           body(chunk, total * chunk / num_chunks, total * (chunk + 1) / num_chunks);
                       });
}

int64_t chunks(OpKernelContext* context, int64_t num_streamed) {
  constexpr int64_t kLeast = 64;  // classes worth a thread
  const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
  return std::max<int64_t>(1, std::min(threads, num_streamed / kLeast));
}

class Maxima : public OpKernel {
 public:
  explicit Maxima(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.read(context));
  }

  void Compute(OpKernelContext* context) override {
    Reading reading;
    OP_REQUIRES_OK(context, reading.open(context, settings_));
    Batch& batch = reading.batch;
    const int64_t num_chunks = chunks(context, batch.num_streamed), padded_rows = batch.padded_rows();
    // Of all streamed classes, and of the labels.
    std::vector<std::vector<float>> maxima[2];
    for (auto& part : maxima)
      part.assign(num_chunks, std::vector<float>(padded_rows, -std::numeric_limits<float>::infinity()));
    on_all_threads(context, batch.num_streamed, num_chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
      settings_.kernels->maxima(batch.pass, begin, end, maxima[0][chunk].data(), maxima[1][chunk].data());
    });
    for (int output = 0; output < 2; ++output) {
      Tensor* tensor;
      OP_REQUIRES_OK(context, context->allocate_output(output, {batch.batch_rows}, &tensor));
      auto out = tensor->flat<float>();
      out.setConstant(-std::numeric_limits<float>::infinity());
      for (const std::vector<float>& part : maxima[output])
        for (int64_t i = 0; i < batch.batch_rows; ++i) out(i) = std::max(out(i), part[i]);
    }
  }

 private:
  Settings settings_;
};

class Forward : public OpKernel {
 public:
  explicit Forward(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.read(context));
  }

  void Compute(OpKernelContext* context) override {
    Reading reading;
    OP_REQUIRES_OK(context, reading.open(context, settings_));
    Batch& batch = reading.batch;
    OP_REQUIRES_OK(context, batch.read_shift(context, settings_));
    const int64_t num_chunks = chunks(context, batch.num_streamed);
    const int64_t padded_rows = batch.padded_rows(), padded_size = batch.pass.padded_size;
    std::vector<std::vector<double>> exp_sums(num_chunks, std::vector<double>(padded_rows, 0.0));
    std::vector<Sums> sums(num_chunks);
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      Sums& own = sums[chunk];
      own.exp_sum = exp_sums[chunk].data();
      for (float** part : {&own.target_sum, &own.own_logit, &own.max_negative})
        OP_REQUIRES_OK(context, batch.allocate(context, padded_rows, part));
      std::fill(own.max_negative, own.max_negative + padded_rows, -std::numeric_limits<float>::infinity());
      for (float** part : {&own.exp_weights, &own.target_weights})
        OP_REQUIRES_OK(context, batch.allocate(context, padded_rows * padded_size, part));
    }
    on_all_threads(context, batch.num_streamed, num_chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
      settings_.kernels->forward(batch.pass, begin, end, sums[chunk]);
    });
    write(context, batch, sums);
  }

 private:
  static void write(OpKernelContext* context, const Batch& batch, const std::vector<Sums>& sums) {
    const int64_t rows = batch.batch_rows, size = batch.pass.size, padded_size = batch.pass.padded_size;
    float* out[6];
    for (int output = 0; output < 6; ++output) {
      Tensor* tensor;
      const TensorShape shape = output < 4 ? TensorShape({rows}) : TensorShape({rows, size});
      OP_REQUIRES_OK(context, context->allocate_output(output, shape, &tensor));
      out[output] = tensor->flat<float>().data();
    }
    for (int64_t i = 0; i < rows; ++i) {
      double exp_sum = 0;
      float target_sum = 0, own_logit = 0, max_negative = -std::numeric_limits<float>::infinity();
      for (const Sums& part : sums) {
        exp_sum += part.exp_sum[i];
        target_sum += part.target_sum[i];
        own_logit += part.own_logit[i];
        max_negative = std::max(max_negative, part.max_negative[i]);
      }
      out[0][i] = static_cast<float>(exp_sum), out[1][i] = target_sum, out[2][i] = own_logit, out[3][i] = max_negative;
      for (int64_t d = 0; d < size; ++d) {
        float exp_weight = 0, target_weight = 0;
        for (const Sums& part : sums) {
          exp_weight += part.exp_weights[i * padded_size + d];
          target_weight += part.target_weights[i * padded_size + d];
        }
        out[4][i * size + d] = exp_weight, out[5][i * size + d] = target_weight;
      }
    }
  }

  Settings settings_;
};

class Backward : public OpKernel {
 public:
  explicit Backward(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.read(context));
    OP_REQUIRES_OK(context, context->GetAttr("momentum_factor", &momentum_factor_));
    OP_REQUIRES_OK(context, context->GetAttr("weight_decay", &weight_decay_));
    OP_REQUIRES_OK(context, context->GetAttr("first_class", &first_class_));
  }

  void Compute(OpKernelContext* context) override {
    Stored weights, momentum;
    OP_REQUIRES_OK(context, weights.find(context, 0, "weight_scales"));
    OP_REQUIRES_OK(context, momentum.find(context, 9, "momentum_scales"));
    OP_REQUIRES(context,
                weights.values.get() != momentum.values.get() &&
                    (weights.scales == nullptr || weights.scales.get() != momentum.scales.get()),
                InvalidArgument("class weights and momentum must be two variables"));
    OP_REQUIRES(context, context->input(12).NumElements() == 1 && context->input(13).NumElements() == 1,
                InvalidArgument("learning rate and seed must be scalars"));
    // A class that stood there twice would be moved by two threads at once.
    const Tensor& streamed = context->input(1);
    for (int64_t j = 1; j < streamed.NumElements(); ++j)
      OP_REQUIRES(context, streamed.flat<int32_t>()(j - 1) < streamed.flat<int32_t>()(j),
                  InvalidArgument("streamed classes that are moved must ascend"));
    tensorflow::mutex_lock lock_weights(*weights.values->mu());
    tensorflow::mutex_lock lock_momentum(*momentum.values->mu());
    const auto lock_weight_scales = weights.lock_scales<tensorflow::mutex_lock>();
    const auto lock_momentum_scales = momentum.lock_scales<tensorflow::mutex_lock>();
    for (Var* variable : {weights.values.get(), weights.scales.get(), momentum.values.get(), momentum.scales.get()})
      if (variable != nullptr) OP_REQUIRES_OK(context, own_alone(context, variable));
    OP_REQUIRES(context, weights.values->tensor()->shape() == momentum.values->tensor()->shape(),
                InvalidArgument("class weights and momentum must have one shape"));
    Batch batch;
    OP_REQUIRES_OK(context, batch.read(context, settings_, weights));
    OP_REQUIRES_OK(context, batch.read_shift(context, settings_));
    const Tensor &exp_sum = context->input(10), &target_sum = context->input(11);
    OP_REQUIRES(context, exp_sum.NumElements() == batch.batch_rows && target_sum.NumElements() == batch.batch_rows,
                InvalidArgument("the sums must have one element per row of the batch"));
    Update update;
    OP_REQUIRES_OK(context, momentum.as_table(&update.momentum));
    update.embeddings = context->input(2).flat<float>().data();
    update.target_sum = target_sum.flat<float>().data();
    update.target_scale = 1.0f / (settings_.temperature * static_cast<float>(batch.batch_rows));
    update.learning_rate = context->input(12).flat<float>()(0);
    update.seed = static_cast<uint32_t>(context->input(13).flat<int32_t>()(0));
    update.momentum_factor = momentum_factor_;
    update.weight_decay = weight_decay_;
    update.first_class = first_class_;
    float* expected;
    const int64_t size = batch.pass.size, padded_size = batch.pass.padded_size;
    OP_REQUIRES_OK(context, batch.allocate(context, batch.padded_rows() * padded_size, &expected));
    for (int64_t i = 0; i < batch.batch_rows; ++i)
      for (int64_t d = 0; d < size; ++d)
        expected[i * padded_size + d] =
            update.embeddings[i * size + d] * (update.target_scale / exp_sum.flat<float>()(i));
    if (batch.pass.products == Storage::kBFloat16) settings_.kernels->pack(expected, batch.padded_rows(), padded_size);
    update.expected = expected;
    on_all_threads(
        context, batch.num_streamed, chunks(context, batch.num_streamed),
        [&](int64_t, int64_t begin, int64_t end) { settings_.kernels->backward(batch.pass, update, begin, end); });
  }

 private:
  Settings settings_;
  float momentum_factor_, weight_decay_;
  int64_t first_class_;
};

// The names of the usable kernels, the fastest first.
class UsableKernels : public OpKernel {
 public:
  explicit UsableKernels(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    Tensor* names;
    OP_REQUIRES_OK(context, context->allocate_output(0, {static_cast<int64_t>(usable().size())}, &names));
    for (size_t k = 0; k < usable().size(); ++k) names->flat<tensorflow::tstring>()(k) = usable()[k]->name;
  }
};

REGISTER_OP("InstclsUsableKernels").Output("names: string").SetShapeFn(tensorflow::shape_inference::UnknownShape);
REGISTER_KERNEL_BUILDER(Name("InstclsUsableKernels").Device(tensorflow::DEVICE_CPU), UsableKernels);

// The scales come last, none or one vector, so that other inputs keep their places.
#define INSTCLS_STREAM                                      \
  Input("weights: resource")                                \
      .Input("streamed: int32")                             \
      .Input("embeddings: float")                           \
      .Input("target_row: int32")                           \
      .Input("target_column: int32")                        \
      .Input("target_label: float")                         \
      .Input("target_is_own: bool")                         \
      .Attr("temperature: float")                           \
      .Attr("cross_entropy: bool")                          \
      .Attr("smallest_norm: float")                         \
      .Attr("tile_classes: int >= 1")                       \
      .Attr("products_dtype: {float, bfloat16} = DT_FLOAT") \
      .Attr("kernels: string = ''") /* of which processors; the fastest that run here if empty */

// What a shift of logits needs where exp of the largest would leave float32.
REGISTER_OP("InstclsMaximaPass")
    .INSTCLS_STREAM.Input("weight_scales: num_weight_scales * resource")
    .Attr("num_weight_scales: int >= 0")
    .Output("of_all: float")
    .Output("of_targets: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle embeddings;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 2, &embeddings));
      for (int output = 0; output < 2; ++output)
        context->set_output(output, context->Vector(context->Dim(embeddings, 0)));
      return tensorflow::OkStatus();
    });
REGISTER_KERNEL_BUILDER(Name("InstclsMaximaPass").Device(tensorflow::DEVICE_CPU), Maxima);

REGISTER_OP("InstclsForwardPass")
    .INSTCLS_STREAM.Input("shift_logits: float")
    .Input("shift_targets: float")
    .Input("weight_scales: num_weight_scales * resource")
    .Attr("num_weight_scales: int >= 0")
    .Output("exp_sum: float")
    .Output("target_sum: float")
    .Output("own_logit: float")
    .Output("max_negative: float")
    .Output("exp_weights: float")
    .Output("target_weights: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle embeddings;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 2, &embeddings));
      for (int output = 0; output < 6; ++output)
        context->set_output(output, output < 4 ? context->Vector(context->Dim(embeddings, 0)) : embeddings);
      return tensorflow::OkStatus();
    });
REGISTER_KERNEL_BUILDER(Name("InstclsForwardPass").Device(tensorflow::DEVICE_CPU), Forward);

REGISTER_OP("InstclsBackwardPass")
    .INSTCLS_STREAM.Input("shift_logits: float")
    .Input("shift_targets: float")
    .Input("momentum: resource")
    .Input("exp_sum: float")
    .Input("target_sum: float")
    .Input("learning_rate: float")
    .Input("seed: int32")
    .Input("weight_scales: num_weight_scales * resource")
    .Input("momentum_scales: num_momentum_scales * resource")
    .Attr("num_weight_scales: int >= 0")
    .Attr("num_momentum_scales: int >= 0")
    .Attr("momentum_factor: float")
    .Attr("weight_decay: float")
    .Attr("first_class: int")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs);
REGISTER_KERNEL_BUILDER(Name("InstclsBackwardPass").Device(tensorflow::DEVICE_CPU), Backward);

}  // namespace
}  // namespace instcls
