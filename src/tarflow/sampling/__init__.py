"""How is x drawn from a fixed p? Guidance, solvers that invert the flow, denoising, and `sample`."""
