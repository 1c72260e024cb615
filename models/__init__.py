"""Networks, signal front ends, streaming state, checkpoints and runtimes of Visavis.

Importing `models` never imports torch: serving on a CPU needs numpy, OpenCV and
OpenVINO only. The torch networks live in `models.networks` and are loaded by the
trainer and by the torch runtime.
"""
