"""The gradient-descent laboratory: attention that takes steps of gradient descent in context."""
