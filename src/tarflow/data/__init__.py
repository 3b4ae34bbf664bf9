"""Which images are seen: sources of images, decoding, levels, splits and the order of the batches.

The front door is `tarflow.data.load`, from which come `load`, `load_all`, `ImageSet` and `Splits`. They are not
repeated here: the module of that name would hide a function `load` as soon as it is imported. `pixels`, `noise` and
`batches` need torch and nothing compiled besides.

Three ways lead from a source to training: `load` into memory; `prepare` once, and map (`prepared`); or stream
(`streamed`, in the order of `stream_order`). `feed` hides which one it is.

How to add a source: write a module with a function that returns a `records.Source`, and name it in
`sources.open_source`. With `groups` in its parts it can be streamed.
"""
