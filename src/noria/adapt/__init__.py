"""From a dataset to a candidate: prompt search, fine-tuning, distillation, compression.

Nothing lives here yet; the model journey brings its first modules. Heavy libraries stay in extras.
"""
