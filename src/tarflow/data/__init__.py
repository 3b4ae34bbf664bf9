"""Which images are seen: formats, decoding, levels, splits, the store of large sets, and the order of the batches.

The front door is `tarflow.data.load`, from which come `load`, `load_all`, `ImageSet` and `Splits`. They are not
repeated here: the module of that name would hide a function `load` as soon as it is imported. `pixels`, `noise` and
`batches` need torch and nothing compiled besides.

A source goes one way: `sources` finds its format, whose reader (`readers`) lists its records; `assemble` decodes each
of them once, into memory or into a store on the disk (`store`), which is mapped; `feed` makes batches of either. How to
add a format is said in `readers`.
"""
