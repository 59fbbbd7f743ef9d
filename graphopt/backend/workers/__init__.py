"""Scripts that drive the vendors' toolchains, each in a process of its own. Nothing imports them."""
