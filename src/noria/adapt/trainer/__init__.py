"""The programs that train: each runs by itself, in whatever interpreter has its libraries, on one job folder.

`python -m noria.adapt.trainer.sft FOLDER`. Nothing here imports more of Noria than `contracts`, `kit` and its neighbours.
"""
