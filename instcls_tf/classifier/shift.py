"""Which temperatures need a shift of the logits. No TensorFlow: the plan and sweeps count what it takes."""

# Down to this one exp(l) and its sums over any number of classes stay within float32, since |l| <= 1 / tau.
SMALLEST_UNSHIFTED_TEMPERATURE = 0.025


def needs_shift(temperature: float) -> bool:
    """Whether the rows' true maxima are subtracted before exp, for which a step has a product and a message more."""
    return temperature < SMALLEST_UNSHIFTED_TEMPERATURE
