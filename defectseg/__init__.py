"""Find surface defects on steel, pixel by pixel, and paint them red."""

__version__ = "0.1.0"
