"""What a run will need, from its flags alone; without TensorFlow."""
