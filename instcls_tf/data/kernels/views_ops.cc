// TensorFlow operations around the kernels of views.h. Each runs on the one thread that calls it: views are made in
// parallel, some at a time.

#include <algorithm>
#include <cstring>
#include <vector>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "views.h"

namespace instcls::views {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

constexpr tensorflow::int64 kChannels = 3;

// The fastest that this processor can run.
const ViewKernels& usable() {
#if defined(__x86_64__)
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return kAvx512Kernels;
  if (v3) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}

bool is_matrix(const Tensor& tensor, tensorflow::int64 rows, tensorflow::int64 columns) {
  return tensor.dims() == 2 && tensor.dim_size(0) == rows && tensor.dim_size(1) == columns;
}

bool is_vector(const Tensor& tensor, tensorflow::int64 size) {
  return tensor.dims() == 1 && tensor.dim_size(0) == size;
}

class CropViews : public OpKernel {
 public:
  explicit CropViews(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("size", &size_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &image = context->input(0), &boxes = context->input(1), &mirrored = context->input(2);
    OP_REQUIRES(context, image.dims() == 3 && image.dim_size(2) == kChannels,
                InvalidArgument("image must be [H, W, 3], is ", image.shape().DebugString()));
    const tensorflow::int64 views = boxes.dims() == 2 ? boxes.dim_size(0) : 0;
    OP_REQUIRES(context, is_matrix(boxes, views, 4) && is_vector(mirrored, views),
                InvalidArgument("boxes must be [V, 4] and mirrored [V]"));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({views, size_, size_, kChannels}), &output));
    const tensorflow::int32* box = boxes.flat<tensorflow::int32>().data();
    float* view = output->flat<float>().data();
    for (tensorflow::int64 i = 0; i < views; ++i, box += 4, view += size_ * size_ * kChannels) {
      const Box inside = {box[0], box[1], box[2], box[3]};
      OP_REQUIRES(context,
                  inside.top >= 0 && inside.left >= 0 && inside.height > 0 && inside.width > 0 &&
                      inside.height <= image.dim_size(0) - inside.top &&
                      inside.width <= image.dim_size(1) - inside.left,
                  InvalidArgument("a box lies outside of the image"));
      usable().crop(image.flat<tensorflow::uint8>().data(), image.dim_size(1), inside, mirrored.flat<bool>().data()[i],
                    size_, view);
    }
  }

 private:
  tensorflow::int64 size_;
};

bool are_images(const Tensor& tensor) { return tensor.dims() == 4 && tensor.dim_size(3) == kChannels; }

class ColourViews : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    OP_REQUIRES(context, are_images(input), InvalidArgument("images must be [M, H, W, 3]"));
    const tensorflow::int64 count = input.dim_size(0), pixels = input.dim_size(1) * input.dim_size(2);
    const Tensor &factors = context->input(1), &turns = context->input(2), &orders = context->input(3);
    const Tensor& greys = context->input(4);
    OP_REQUIRES(context,
                is_matrix(factors, count, kHue) && is_vector(turns, count) && is_matrix(orders, count, kChanges) &&
                    is_vector(greys, count),
                InvalidArgument("factors must be [M, 3], turns [M], orders [M, 4], greys [M]"));
    Tensor* output;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, input.shape(), &output));
    const float* images = input.flat<float>().data();
    float* changed = output->flat<float>().data();
    for (tensorflow::int64 i = 0; i < count; ++i) {
      Colour colour;
      std::copy_n(factors.flat<float>().data() + i * kHue, static_cast<int>(kHue), colour.factors);
      colour.turn = turns.flat<float>().data()[i];
      colour.order = orders.flat<tensorflow::int32>().data() + i * kChanges;
      colour.grey = greys.flat<bool>().data()[i];
      OP_REQUIRES(context, is_order(colour.order), InvalidArgument("an order must have each change once"));
      usable().colour(images + i * pixels * kChannels, pixels, colour, changed + i * pixels * kChannels);
    }
  }

 private:
  static bool is_order(const tensorflow::int32* order) {
    tensorflow::int32 sorted[kChanges];
    std::copy_n(order, static_cast<int>(kChanges), sorted);
    std::sort(sorted, sorted + kChanges);
    for (int change = 0; change < kChanges; ++change)
      if (sorted[change] != change) return false;
    return true;
  }
};

class BlurViews : public OpKernel {
 public:
  explicit BlurViews(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("radius", &radius_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    OP_REQUIRES(context, are_images(input) && input.dim_size(1) == input.dim_size(2),
                InvalidArgument("images must be [M, S, S, 3]"));
    const tensorflow::int64 count = input.dim_size(0), side = input.dim_size(1);
    const Tensor& sigmas = context->input(1);
    OP_REQUIRES(context, is_vector(sigmas, count), InvalidArgument("sigmas must be [M]"));
    Tensor* output;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, input.shape(), &output));
    const tensorflow::int64 size = side * side * kChannels;
    const float* images = input.flat<float>().data();
    float* blurred = output->flat<float>().data();
    std::vector<float> scratch(size);
    for (tensorflow::int64 i = 0; i < count; ++i) {
      const float sigma = sigmas.flat<float>().data()[i];
      if (sigma > 0.0f)
        usable().blur(images + i * size, side, sigma, radius_, scratch.data(), blurred + i * size);
      else if (images != blurred)
        std::memcpy(blurred + i * size, images + i * size, size * sizeof(float));
    }
  }

 private:
  tensorflow::int64 radius_;
};

tensorflow::Status same_shape(InferenceContext* context) {
  context->set_output(0, context->input(0));
  return tensorflow::OkStatus();
}

REGISTER_OP("InstclsCropViews")
    .Input("image: uint8")
    .Input("boxes: int32")
    .Input("mirrored: bool")
    .Output("views: float")
    .Attr("size: int >= 1")
    .SetShapeFn([](InferenceContext* context) {
      tensorflow::int64 size;
      TF_RETURN_IF_ERROR(context->GetAttr("size", &size));
      ShapeHandle boxes;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 2, &boxes));
      context->set_output(0, context->MakeShape({context->Dim(boxes, 0), context->MakeDim(size), context->MakeDim(size),
                                                 context->MakeDim(kChannels)}));
      return tensorflow::OkStatus();
    });

REGISTER_OP("InstclsColourViews")
    .Input("images: float")
    .Input("factors: float")
    .Input("turns: float")
    .Input("orders: int32")
    .Input("greys: bool")
    .Output("changed: float")
    .SetShapeFn(same_shape);

REGISTER_OP("InstclsBlurViews")
    .Input("images: float")
    .Input("sigmas: float")
    .Output("blurred: float")
    .Attr("radius: int >= 0")
    .SetShapeFn(same_shape);

REGISTER_KERNEL_BUILDER(Name("InstclsCropViews").Device(tensorflow::DEVICE_CPU), CropViews);
REGISTER_KERNEL_BUILDER(Name("InstclsColourViews").Device(tensorflow::DEVICE_CPU), ColourViews);
REGISTER_KERNEL_BUILDER(Name("InstclsBlurViews").Device(tensorflow::DEVICE_CPU), BlurViews);

}  // namespace
}  // namespace instcls::views
