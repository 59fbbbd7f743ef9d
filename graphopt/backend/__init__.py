"""What the vendors' own toolchains say of a model, run in processes of their own with a time limit."""
