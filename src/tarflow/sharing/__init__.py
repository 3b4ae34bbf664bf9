"""How is a run handed to others? As a model of the hub with its card (`push`), and as a page on its own (`space`)."""
