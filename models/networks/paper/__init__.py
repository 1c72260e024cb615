"""The published networks (METHOD.md section 2, column `paper`): official dims, learnt codes.

They share the crop, the training stages, the export and the engine surface with `live`;
what they cannot do is draw at another size than 224, keep a background, or run in real time
on a CPU.
"""
