"""Experiments as recipes: variants of pre-training and fine-tuning over seeds, compared in a table and a picture."""
