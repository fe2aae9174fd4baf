"""The million-way classifier: the sharded Keras layer, its exact softmax, labels, hard negatives and prior."""
