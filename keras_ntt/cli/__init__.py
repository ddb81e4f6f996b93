"""The command line, ``keras-ntt``: options and help texts, jobs, and what they share.

Only this package imports click, and no other imports this one.
"""

from keras_ntt.cli.program import main

__all__ = ["main"]
