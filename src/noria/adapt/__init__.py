"""From a dataset to a candidate: fine-tuning in a process of its own, its exports, and their proof. Nothing here imports torch."""
