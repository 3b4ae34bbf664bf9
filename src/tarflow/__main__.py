"""`python -m tarflow`, which is what `torchrun -m tarflow` starts."""

from tarflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
