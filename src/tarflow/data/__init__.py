"""Which images are seen: sources of images, decoding, levels, splits and the order of the batches.

The front door is `tarflow.data.load`, from which come `load`, `load_all`, `ImageSet` and `Splits`. They are not
repeated here: the module of that name would hide a function `load` as soon as it is imported. `pixels`, `noise` and
`batches` need torch and nothing compiled besides.

How to add a source: write a module with a function that returns a `records.Source`, and name it in `load.open_source`.
"""
