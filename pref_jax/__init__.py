"""Shared ground of the personalised reward models: data, language models, training, scores. Knows no method."""
