"""Transfer learning with an explicit, proved training loop.

Importing this package imports nothing heavy.
"""

__version__ = "0.2.0"
