"""The report: how is a trained flow shown? One HTML page that needs nothing else, and its pictures as PNG files."""
