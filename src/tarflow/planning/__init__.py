"""What will it cost? Arithmetic, memory and time of a training run, before it begins."""
