"""The passes: one file each, imported as ``graphopt.passes.<file>`` (see CONTRIBUTING.md)."""

if __name__ != "graphopt.passes":
    raise ImportError("import the passes as graphopt.passes, not as a top-level package")
