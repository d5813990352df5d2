"""Evaluation: perplexity on held-out text, accuracy on downstream tasks."""
