"""C++ kernels of the streamed softmax for CPUs, compiled once by `python -m instcls_tf.kernels.build`.

`streamed_softmax.cc` computes, `streamed_softmax_ops.cc` makes TensorFlow operations of it, and
`instcls_tf.compiled_softmax` calls them. Without them, and on GPUs, `instcls_tf.softmax` does the same with
TensorFlow's own operations.
"""
