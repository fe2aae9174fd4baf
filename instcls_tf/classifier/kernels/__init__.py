"""C++ kernels of the streamed softmax for CPUs, compiled once by `python -m instcls_tf.classifier.kernels.build`.

`streamed_softmax.cc` computes, `streamed_softmax_ops.cc` makes TensorFlow operations of it, and `passes.py` calls them.
Without them, and on GPUs, `instcls_tf.classifier.portable_passes` does the same with TensorFlow's own operations.
"""
