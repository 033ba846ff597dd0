"""What the assignments share: numbers drawn from a seed, and checks that say what is wrong.

The notebooks in ``assignments/`` import one module each from here, for the tests that a student runs and for the
hidden ones, which are the same checks on other numbers.
"""
